/* One thread that is in vfork(2) for a second, again and again, where nothing but a kill ends its wait, and
 * another one that says every 100 ms that it runs. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *forks(void *arg)
{
	for (;;) {
		sleep(1);
		pid_t child = vfork();

		if (!child) {
			execl("/bin/sh", "sh", "-c", "exit 0", NULL);
			_exit(1);
		}
		waitpid(child, NULL, 0);
		child = vfork();
		if (!child) {
			struct timespec ts = {1, 0};

			nanosleep(&ts, NULL);
			_exit(0);
		}
		waitpid(child, NULL, 0);
	}
	return arg;
}

int main(void)
{
	pthread_t t;

	setvbuf(stdout, NULL, _IONBF, 0);
	pthread_create(&t, NULL, forks, NULL);
	puts("ready");
	for (;;) {
		usleep(100000);
		puts("beat");
	}
}
