#include "native.h"
#include "clock.h"
#include "futex.h"

#include <string.h>

static void tell(ab_native *n)
{
	atomic_fetch_add(&n->changed, 1);
	ut_futex_wake(&n->changed, UT_SHARED_WORD);
}

static void do_order(ab_native *n, uint8_t *ram)
{
	uint64_t written = 0;

	do {
		for (uint64_t i = 0; i < n->n; i++) {
			((volatile uint8_t *)ram)[n->list[i] * AB_PAGE + n->list[i] % AB_PAGE] = n->value;
			atomic_store_explicit(&n->written, ++written, memory_order_relaxed);
		}
		n->value = (n->value + 1) & 0xff;
	} while (n->storm && !atomic_load_explicit(&n->stop, memory_order_relaxed));
}

void ab_native_run(ab_native *n, uint8_t *ram)
{
	for (;;) {
		uint32_t changed = atomic_load(&n->changed), posted = atomic_load(&n->posted);
		int64_t began;

		if (atomic_load(&n->quit))
			return;
		if (posted == atomic_load(&n->done)) {
			ut_futex_wait(&n->changed, changed, -1, UT_SHARED_WORD);
			continue;
		}
		began = ut_now_ns();
		do_order(n, ram);
		n->took_ns = ut_now_ns() - began;
		atomic_store(&n->done, posted);
		tell(n);
	}
}

void ab_native_quit(ab_native *n)
{
	atomic_store(&n->stop, 1);
	atomic_store(&n->quit, 1);
	tell(n);
}

void ab_native_post(ab_native *n, const uint64_t *list, uint64_t rows, uint32_t value, int storm)
{
	memcpy(n->list, list, rows * sizeof(*list));
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
		ut_futex_wait(&n->changed, changed, left, UT_SHARED_WORD);
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
