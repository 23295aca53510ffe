#include "sabotage.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Atomic uint32_t ut_broken;
static int is_off;

void ut_sabotage_off(void)
{
	is_off = 1;
}

void ut_sabotage(const char *point)
{
	static const char *order, *where;

	if (!order) {
		order = getenv("UFFDTRACK_SABOTAGE");
		order = order ? order : "";
		where = strchr(order, ':');
	}
	if (is_off || !where || strcmp(where + 1, point))
		return;
	if (!strncmp(order, "slow", 4)) {
		poll(NULL, 0, 1000);
	} else if (!strncmp(order, "stop", 4)) {
		kill(getpid(), SIGSTOP);
	} else if (!strncmp(order, "sleep", 5)) {
		for (;;)
			pause();
	} else {
		for (volatile int i = 0;; i++)
			;
	}
}
