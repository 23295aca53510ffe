/* The table of a process's threads, and what takes no stop: their descriptors and memory. */
#include "cleanup.h"
#include "compat.h"
#include "tracee_parts.h"
#include "vec.h"

#include <fcntl.h>
#include <sys/uio.h>

int ut_tracee_index(const ut_tracee *t, int tid)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].tid == tid)
			return i;
	return -ESRCH;
}

int ut_tracee_pick(const ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_STOPPED && !t->threads[i].worker)
			return i;
	return -ESRCH;
}

int ut_add_thread(ut_tracee *t, int tid)
{
	return VEC_PUSH(t->threads, t->n, t->cap, (ut_thread){.tid = tid});
}

/* Another thread may have the number of one that we wait for: it has called exec, and nobody has asked it since. To ask twice
 * does no harm: whoever stands is let go by detaching, which takes back what is pending. */
void ut_ask_again(const ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_ASKED)
			trace(PTRACE_INTERRUPT, t->threads[i].tid, NULL, NULL);
}

void ut_keep_asked(ut_tracee *t)
{
	size_t kept = 0;

	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_ASKED) {
			t->threads[kept] = t->threads[i];
			t->threads[kept++].stood = 0;
		}
	t->n = kept;
}

int ut_thread_getfd(int tid, int fd)
{
	AUTO_FD thread = syscall(SYS_pidfd_open, tid, UT_PIDFD_THREAD);
	int own = thread < 0 ? -1 : syscall(SYS_pidfd_getfd, thread, fd, 0);

	return own < 0 ? -errno : own;
}

int ut_tracee_getfd(const ut_tracee *t, int tid, int fd)
{
	int own = syscall(SYS_pidfd_getfd, t->pidfd, fd, 0), err = -errno;

	if (own >= 0)
		return own;
	/* Where the first thread has ended its pidfd has no files. */
	own = ut_thread_getfd(tid, fd);
	return own == -EINVAL ? err : own; /* before Linux 6.9 there is none of a thread */
}

int ut_read_remote(int tid, uint64_t addr, void *to, size_t len)
{
	struct iovec local = {to, len}, remote = {(void *)addr, len};

	return process_vm_readv(tid, &local, 1, &remote, 1, 0) == (ssize_t)len ? 0 : -EFAULT;
}

int ut_remote_write(int pid, uint64_t at, const void *from, size_t n)
{
	while (n) {
		struct iovec local = {(void *)from, n}, remote = {(void *)at, n};
		ssize_t done = process_vm_writev(pid, &local, 1, &remote, 1, 0);

		if (done < 0)
			return -errno;
		from = (const char *)from + done;
		at += done;
		n -= done;
	}
	return 0;
}
