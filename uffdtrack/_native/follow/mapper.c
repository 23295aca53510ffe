#include "cleanup.h"
#include "mapper.h"
#include "mm.h"

#include <errno.h>
#include <sys/syscall.h>
#include <sys/user.h>

/* -- moves --------------------------------------------------------------------------------------- */

/* With the lock held: who moves goes on when its message was read, and the next stop must find it noted. */
static void read_moves(ut_mapper *p)
{
	struct uffd_msg msg[UT_FAULT_BATCH];

	while (ut_fault_server_read(&p->server, msg) > 0)
		p->moved = 1;
}

static void serve_moves(void *arg)
{
	struct pollfd fds[UT_SERVER_FDS];
	ut_mapper *p = arg;

	while (ut_fault_server_wait(&p->server, fds, UT_SERVER_FDS, -1) != -ESHUTDOWN) {
		pthread_mutex_lock(&p->lock);
		read_moves(p);
		pthread_mutex_unlock(&p->lock);
	}
}

int ut_mapper_take_moved(ut_mapper *p)
{
	int moved;

	pthread_mutex_lock(&p->lock);
	read_moves(p);
	moved = p->moved;
	p->moved = 0;
	pthread_mutex_unlock(&p->lock);
	return moved;
}

int ut_mapper_open(struct ut_space *s, int number, int uffd, ut_mapper **out)
{
	ut_mapper *p = calloc(1, sizeof(*p));
	pthread_mutexattr_t inherit;
	int err;

	if (!p)
		return -ENOMEM;
	p->space = s;
	p->number = number;
	/* Who stops the target may run at a higher priority than the server. */
	pthread_mutexattr_init(&inherit);
	pthread_mutexattr_setprotocol(&inherit, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&p->lock, &inherit);
	pthread_mutexattr_destroy(&inherit);
	err = ut_fault_server_start(&p->server, uffd, serve_moves, p);
	if (err) {
		pthread_mutex_destroy(&p->lock);
		free(p);
		return err;
	}
	p->uffd = uffd;
	*out = p;
	return 0;
}

void ut_mapper_close(ut_mapper *p)
{
	ut_fault_server_stop(&p->server);
	ut_close_fd(&p->uffd); /* takes every trap away */
	ut_births_close(&p->births);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

/* -- MADV_GUARD_INSTALL -------------------------------------------------------------------------- */

enum {
	GUARD_INSTALL = 102,  /* Linux 6.13 */
	COMPAT_MADVISE = 219, /* of a 32-bit call */
};
#ifndef SYS_process_madvise /* Linux 5.10 */
#define SYS_process_madvise 440
#endif

/* It takes the markers of traps for pages, and begins anew for as long as there are any. */
int ut_is_guarding(const ut_thread *th, ut_run *range)
{
	const struct user_regs_struct *r = (const void *)th->regs;
	int advice = r->rdx;

	if (th->state != UT_THREAD_STOPPED)
		return 0;
	switch (r->orig_rax) {
	case SYS_madvise:
		*range = (ut_run){r->rdi, r->rdi + r->rsi};
		break;
	case COMPAT_MADVISE:
		*range = (ut_run){(uint32_t)r->rbx, (uint64_t)(uint32_t)r->rbx + (uint32_t)r->rcx};
		break;
	case SYS_process_madvise:
		*range = (ut_run){0, UINT64_MAX};
		advice = r->r10;
		break;
	default:
		return 0;
	}
	return advice == GUARD_INSTALL;
}
