/* One thread that is in vfork(2) for longer than a stop waits (0.5 s), again and again, where nothing but a kill
 * ends its wait, and another one that says every 100 ms that it runs. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void nap(long ms)
{
	struct timespec ts = {0, ms * 1000000};

	nanosleep(&ts, NULL);
}

static void *forks(void *arg)
{
	for (;;) {
		nap(300);
		pid_t child = vfork();

		if (!child) {
			execl("/bin/sh", "sh", "-c", "exit 0", NULL);
			_exit(1);
		}
		waitpid(child, NULL, 0);
		child = vfork();
		if (!child) {
			nap(800);
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
