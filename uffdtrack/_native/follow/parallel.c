#include "compat.h"
#include "parallel.h"

#include <pthread.h>
#include <sched.h>

struct job {
	int (*work)(void *share);
	void *share;
	int err;
};

static void *run(void *arg)
{
	struct job *job = arg;

	job->err = job->work(job->share);
	return NULL;
}

int ut_shares(uint64_t amount, uint64_t least)
{
	uint64_t wanted = amount / least + 1;
	cpu_set_t cpus;

	wanted = wanted < UT_SHARES ? wanted : UT_SHARES;
	if (wanted == 1 || sched_getaffinity(0, sizeof(cpus), &cpus))
		return 1;
	return wanted < (uint64_t)CPU_COUNT(&cpus) ? (int)wanted : CPU_COUNT(&cpus);
}

int ut_parallel(int (*work)(void *share), void *shares, size_t size, int n)
{
	struct job jobs[UT_SHARES];
	pthread_t threads[UT_SHARES];
	int started = 1, err = 0;

	for (int i = 0; i < n; i++)
		jobs[i] = (struct job){work, (char *)shares + i * size, 0};
	while (started < n && !pthread_create(&threads[started], NULL, run, &jobs[started]))
		started++;
	run(&jobs[0]);
	for (int i = started; i < n; i++)
		run(&jobs[i]);
	for (int i = 1; i < started; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < n && !err; i++)
		err = jobs[i].err;
	return err;
}
