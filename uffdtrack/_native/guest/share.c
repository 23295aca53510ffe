#include "share.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <unistd.h>

int64_t ut_grant(ut_shared *s)
{
	int64_t left = atomic_load(&s->limit.budget), part;
	int bound = 0;

	for (int i = 0; i < s->nvcpus; i++)
		bound += s->vcpu[i].state == UT_VCPU_BOUND;
	do {
		if (left <= 0)
			return 0;
		/* A share that leaves something for the others; the nearer the end, the smaller. */
		part = bound > 1 ? (left + 2 * bound - 1) / (2 * bound) : left;
	} while (!atomic_compare_exchange_weak(&s->limit.budget, &left, left - part));
	return part;
}

uint64_t ut_counted(int perf)
{
	uint64_t n = 0;

	return read(perf, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

int ut_set_period(ut_vcpu *v, int perf, int64_t period)
{
	uint64_t value = period;

	/* Set while it is on, a period counts as just over, and the next fault would signal. */
	if (ioctl(perf, PERF_EVENT_IOC_DISABLE, 0) || ioctl(perf, PERF_EVENT_IOC_PERIOD, &value))
		return -errno;
	atomic_store(&v->until, ut_counted(perf) + period);
	return ioctl(perf, PERF_EVENT_IOC_ENABLE, 0) ? -errno : 0;
}
