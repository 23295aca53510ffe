#include "aside.h"
#include "cleanup.h"
#include "proc_stat.h"

#include <errno.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether a thread can be given its priority back: root of a user namespace seems to have the right, and has not. */
static int may_give_back(void)
{
	int nice = getpriority(PRIO_PROCESS, 0);

	return nice > -20 && !setpriority(PRIO_PROCESS, 0, nice - 1) && !setpriority(PRIO_PROCESS, 0, nice);
}

static int set_policy(int tid, int policy, int nice)
{
	struct sched_param p = {0};

	/* The policy alone would not take a processor away from a thread that has it. */
	return sched_setscheduler(tid, policy, &p) || setpriority(PRIO_PROCESS, tid, nice);
}

void ut_step_aside(ut_aside *a)
{
	int own = syscall(SYS_gettid), tid;
	AUTO_DIR dir = ut_open_tasks(getpid());

	a->n = 0;
	if (!dir || !may_give_back())
		return;
	while (a->n < UT_ASIDE && (tid = ut_next_task(dir))) {
		int policy = sched_getscheduler(tid);

		if (tid == own || policy != SCHED_OTHER)
			continue;
		a->thread[a->n].tid = tid;
		a->thread[a->n++].nice = getpriority(PRIO_PROCESS, tid);
		set_policy(tid, SCHED_IDLE, 19);
	}
}

void ut_step_back(ut_aside *a)
{
	for (; a->n; a->n--)
		set_policy(a->thread[a->n - 1].tid, SCHED_OTHER, a->thread[a->n - 1].nice); /* it may have ended */
}

void ut_set_urgent(int urgent)
{
	struct sched_param p = {.sched_priority = urgent ? 1 : 0};

	sched_setscheduler(0, urgent ? SCHED_FIFO : SCHED_OTHER, &p);
}
