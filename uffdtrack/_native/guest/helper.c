#include "helper.h"
#include "clock.h"
#include "futex.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#define SPIN_NS 20000
#define LEAST 4 /* parts: waking a thread takes some 10 us */

/* Of a job. The helper takes it, if it comes in time, and gives it back when it has done its last part. */
enum { NONE, OFFERED, TAKEN, DONE, END };

struct ut_helper {
	pthread_t thread;
	pthread_mutex_t lock; /* one job at a time */
	_Atomic uint32_t state;
	int (*work)(void *arg, size_t i);
	void *arg;
	size_t n;
	_Atomic size_t next;
	_Atomic int err;
};

static void do_parts(ut_helper *h)
{
	size_t i;

	while ((i = atomic_fetch_add(&h->next, 1)) < h->n) {
		int err = h->work(h->arg, i);

		if (err < 0)
			atomic_store(&h->err, err);
	}
}

static void *help(void *arg)
{
	ut_helper *h = arg;

	for (;;) {
		uint32_t state = atomic_load(&h->state);

		if (state == END)
			return NULL;
		if (state != OFFERED || !atomic_compare_exchange_strong(&h->state, &state, TAKEN)) {
			ut_futex_wait(&h->state, state, -1, UT_PRIVATE_WORD);
			continue;
		}
		do_parts(h);
		atomic_store(&h->state, DONE);
		ut_futex_wake(&h->state, UT_PRIVATE_WORD);
	}
}

static ut_helper *start(void)
{
	ut_helper *h;
	sigset_t all, before;
	cpu_set_t cpus;
	int err;

	if (sched_getaffinity(0, sizeof(cpus), &cpus) || CPU_COUNT(&cpus) < 2)
		return NULL;
	h = calloc(1, sizeof(*h));
	if (!h)
		return NULL;
	pthread_mutex_init(&h->lock, NULL);
	/* Signals of the process are for its own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&h->thread, NULL, help, h);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!err)
		return h;
	free(h);
	return NULL;
}

static int alone(int (*work)(void *arg, size_t i), void *arg, size_t n)
{
	int err = 0;

	for (size_t i = 0; i < n; i++) {
		int one = work(arg, i);

		err = one < 0 && !err ? one : err;
	}
	return err;
}

/* The job is over for the helper. Where it has not even begun, nobody waits for it. */
static void take_back(ut_helper *h)
{
	uint32_t state = OFFERED;
	int64_t spin = ut_now_ns() + SPIN_NS;

	if (atomic_compare_exchange_strong(&h->state, &state, NONE))
		return;
	while ((state = atomic_load(&h->state)) != DONE)
		if (ut_now_ns() > spin)
			ut_futex_wait(&h->state, state, -1, UT_PRIVATE_WORD);
	atomic_store(&h->state, NONE);
}

/* Of two threads that start one at once, one has its own ended. */
static ut_helper *publish(ut_helper **helper, ut_helper *own)
{
	ut_helper *none = NULL;

	if (own && !__atomic_compare_exchange_n(helper, &none, own, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		ut_helper_end(&own);
	return own ? own : none;
}

int ut_helped(ut_helper **helper, int (*work)(void *arg, size_t i), void *arg, size_t n)
{
	ut_helper *h = *helper;
	int err;

	if (n < LEAST || (!h && !(h = publish(helper, start()))) || pthread_mutex_trylock(&h->lock))
		return alone(work, arg, n);
	h->work = work;
	h->arg = arg;
	h->n = n;
	atomic_store(&h->next, 0);
	atomic_store(&h->err, 0);
	atomic_store(&h->state, OFFERED);
	ut_futex_wake(&h->state, UT_PRIVATE_WORD);
	do_parts(h);
	take_back(h);
	err = atomic_load(&h->err);
	pthread_mutex_unlock(&h->lock);
	return err;
}

void ut_helper_end(ut_helper **helper)
{
	ut_helper *h = *helper;

	if (!h)
		return;
	*helper = NULL;
	atomic_store(&h->state, END);
	ut_futex_wake(&h->state, UT_PRIVATE_WORD);
	pthread_join(h->thread, NULL);
	free(h);
}
