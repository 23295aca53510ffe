#include "native.h"
#include "clock.h"
#include "futex.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void tell(ab_native *n)
{
	atomic_fetch_add(&n->changed, 1);
	ut_futex_wake(&n->changed, UT_PRIVATE_WORD);
}

static void do_order(ab_native *n)
{
	uint64_t written = 0;

	do {
		for (uint64_t i = 0; i < n->n; i++) {
			((volatile uint8_t *)n->ram)[n->list[i] * AB_PAGE + n->list[i] % AB_PAGE] = n->value;
			atomic_store_explicit(&n->written, ++written, memory_order_relaxed);
		}
		n->value = (n->value + 1) & 0xff;
	} while (n->storm && !atomic_load_explicit(&n->stop, memory_order_relaxed));
}

static void *run(void *arg)
{
	ab_native *n = arg;

	atomic_store(&n->tid, syscall(SYS_gettid));
	tell(n);
	for (;;) {
		uint32_t changed = atomic_load(&n->changed), posted = atomic_load(&n->posted);
		int64_t began;

		if (atomic_load(&n->quit))
			return NULL;
		if (posted == atomic_load(&n->done)) {
			ut_futex_wait(&n->changed, changed, -1, UT_PRIVATE_WORD);
			continue;
		}
		began = ut_now_ns();
		do_order(n);
		n->took_ns = ut_now_ns() - began;
		atomic_store(&n->done, posted);
		tell(n);
	}
}

int ab_native_open(uint8_t *ram, ab_native **out)
{
	ab_native *n = calloc(1, sizeof(*n));
	int err;

	if (!n)
		return -ENOMEM;
	n->ram = ram;
	err = -pthread_create(&n->thread, NULL, run, n);
	if (err) {
		free(n);
		return err;
	}
	*out = n;
	return 0;
}

void ab_native_close(ab_native *n)
{
	atomic_store(&n->stop, 1);
	atomic_store(&n->quit, 1);
	tell(n);
	pthread_join(n->thread, NULL);
	free(n);
}

int ab_native_tid(ab_native *n)
{
	for (;;) {
		uint32_t changed = atomic_load(&n->changed);
		int tid = atomic_load(&n->tid);

		if (tid)
			return tid;
		ut_futex_wait(&n->changed, changed, -1, UT_PRIVATE_WORD);
	}
}

void ab_native_post(ab_native *n, const uint64_t *list, uint64_t rows, uint32_t value, int storm)
{
	n->list = list;
	n->n = rows;
	n->value = value;
	n->storm = storm;
	atomic_store(&n->stop, 0);
	atomic_store(&n->written, 0);
	atomic_fetch_add(&n->posted, 1);
	tell(n);
}

int ab_native_wait(ab_native *n, int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;

	for (;;) {
		uint32_t changed = atomic_load(&n->changed);
		int64_t left = deadline - ut_now_ns();

		if (atomic_load(&n->posted) == atomic_load(&n->done))
			return 1;
		if (left <= 0)
			return 0;
		ut_futex_wait(&n->changed, changed, left, UT_PRIVATE_WORD);
	}
}

void ab_native_stop(ab_native *n)
{
	atomic_store(&n->stop, 1);
}

uint64_t ab_native_written(const ab_native *n)
{
	return atomic_load(&n->written);
}

int64_t ab_native_took_ns(const ab_native *n)
{
	return n->took_ns;
}
