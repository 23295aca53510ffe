#include "fault_server.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void *run(void *arg)
{
	ut_fault_server *f = arg;
	struct sched_param p = {0};

	/* Others wait for this thread, so it never stands aside: aside.h passes over threads with this flag. */
	sched_setscheduler(0, SCHED_OTHER | SCHED_RESET_ON_FORK, &p);
	f->serve(f->arg);
	return NULL;
}

int ut_fault_server_start(ut_fault_server *f, int uffd, void (*serve)(void *arg), void *arg)
{
	sigset_t all, old;
	int err;

	*f = (ut_fault_server){.uffd = uffd, .serve = serve, .arg = arg};
	f->poke = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (f->poke < 0)
		return -errno;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = -pthread_create(&f->thread, NULL, run, f);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		close(f->poke);
	f->running = !err;
	return err;
}

void ut_fault_server_poke(ut_fault_server *f)
{
	uint64_t one = 1;

	while (write(f->poke, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void ut_fault_server_stop(ut_fault_server *f)
{
	if (!f->running)
		return;
	atomic_store(&f->stopping, 1);
	ut_fault_server_poke(f);
	pthread_join(f->thread, NULL);
	close(f->poke);
	f->running = 0;
}

int ut_fault_server_wait(ut_fault_server *f, struct pollfd *fds, size_t n, int timeout_ms)
{
	uint64_t pokes;
	int found;

	fds[0] = (struct pollfd){f->uffd, POLLIN, 0};
	fds[1] = (struct pollfd){f->poke, POLLIN, 0};
	found = poll(fds, n, timeout_ms);
	if (found > 0 && fds[1].revents && read(f->poke, &pokes, sizeof(pokes)) < 0 && errno != EAGAIN)
		return -errno;
	return atomic_load(&f->stopping) ? -ESHUTDOWN : found;
}

int ut_fault_server_read(const ut_fault_server *f, struct uffd_msg *out)
{
	ssize_t n = read(f->uffd, out, UT_FAULT_BATCH * sizeof(*out));

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	return n / sizeof(*out);
}
