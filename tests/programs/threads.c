/* threads N: N threads that sleep, and a first one that writes a page for each line on stdin. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char page[4096];

static void *stay(void *arg)
{
	for (;;)
		pause();
	return arg;
}

int main(int argc, char **argv)
{
	pthread_attr_t small;
	pthread_t t;
	int c;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int i = argc > 1 ? atoi(argv[1]) : 1; i > 0; i--)
		if (pthread_create(&t, &small, stay, NULL))
			return 1;
	for (printf("ready\n"); fflush(stdout) == 0 && (c = getchar()) != EOF; page[0]++)
		if (c == '\n')
			printf("%d\n", page[0]);
	return 0;
}
