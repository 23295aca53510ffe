#include "compat.h"
#include "fault_ring.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KEPT_FDS = 64 }; /* descriptors that are left for all else */

int ut_software_event(int tid, int config, uint64_t period, uint64_t sample, uint32_t wake_bytes, int births)
{
	struct perf_event_attr a = {
		.type = PERF_TYPE_SOFTWARE, .size = sizeof(a), .config = config,
		.sample_period = period, .sample_type = sample, .disabled = 1, .task = births,
		.watermark = 1, .wakeup_watermark = wake_bytes,
	};
	int fd = syscall(SYS_perf_event_open, &a, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int ut_leaves_room(int fd)
{
	struct rlimit files;

	return !getrlimit(RLIMIT_NOFILE, &files) && (rlim_t)fd + KEPT_FDS < files.rlim_cur;
}

int ut_fault_events_open(int tid, uint32_t wake_bytes, int births, ut_fault_events *out)
{
	int maj, min = ut_software_event(tid, PERF_COUNT_SW_PAGE_FAULTS_MIN, 1, PERF_SAMPLE_ADDR, wake_bytes, births);

	if (min < 0)
		return min;
	maj = ut_software_event(tid, PERF_COUNT_SW_PAGE_FAULTS_MAJ, 1, PERF_SAMPLE_ADDR, wake_bytes, 0);
	if (maj < 0) {
		close(min);
		return maj;
	}
	*out = (ut_fault_events){min, maj};
	return 0;
}

void ut_fault_events_close(ut_fault_events *e)
{
	if (e->min >= 0)
		close(e->min);
	if (e->maj >= 0)
		close(e->maj);
	*e = (ut_fault_events){-1, -1};
}

int ut_fault_ring_map(ut_fault_ring *r, size_t records)
{
	size_t bytes = 4096;
	void *v;

	while (bytes < records * UT_FAULT_RECORD)
		bytes *= 2;
	r->bytes = bytes + 4096;
	/* Populated: a thread that drains the ring of its own faults would fill it by draining. */
	v = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd.min, 0);
	if (v == MAP_FAILED)
		return -errno;
	r->ring = v;
	if (ioctl(r->fd.maj, PERF_EVENT_IOC_SET_OUTPUT, r->fd.min) || ioctl(r->fd.min, PERF_EVENT_IOC_ENABLE, 0) ||
	    ioctl(r->fd.maj, PERF_EVENT_IOC_ENABLE, 0))
		return -errno;
	return 0;
}

void ut_fault_ring_close(ut_fault_ring *r)
{
	if (r->ring)
		munmap(r->ring, r->bytes);
	ut_fault_events_close(&r->fd);
	r->ring = NULL;
}
