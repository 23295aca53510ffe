/* A guest without KVM, for engines that see writes of user code only: the same orders, the same RAM. */
#include "vm.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void do_order(kg_native *n)
{
	kg_mailbox *m = &n->mailbox;
	const uint64_t *list = (const uint64_t *)m->list;

	m->written = 0;
	do {
		for (uint64_t i = 0; i < m->n; i++) {
			((volatile uint8_t *)n->ram)[list[i] * KG_PAGE + list[i] % KG_PAGE] = m->value;
			m->written++;
		}
		m->value = (m->value + 1) & 0xff;
	} while (m->kind == KG_STORM && !m->stop);
}

static void *run_native(void *arg)
{
	kg_native *n = arg;

	atomic_store(&n->tid, syscall(SYS_gettid));
	for (;;) {
		uint32_t changed = atomic_load(&n->changed);
		int64_t began;

		if (atomic_load(&n->quit))
			return NULL;
		if (n->mailbox.seq == n->mailbox.done) {
			kg_wait(&n->changed, changed, -1);
			continue;
		}
		began = kg_now();
		do_order(n);
		n->took_ns = kg_now() - began;
		n->mailbox.done = n->mailbox.seq;
		atomic_fetch_add(&n->changed, 1);
		kg_wake(&n->changed);
	}
}

int kg_native_open(uint8_t *ram, kg_native **out)
{
	kg_native *n = calloc(1, sizeof(*n));
	int err;

	if (!n)
		return -ENOMEM;
	n->ram = ram;
	err = -pthread_create(&n->thread, NULL, run_native, n);
	if (err) {
		free(n);
		return err;
	}
	*out = n;
	return 0;
}

void kg_native_close(kg_native *n)
{
	n->mailbox.stop = 1;
	atomic_store(&n->quit, 1);
	atomic_fetch_add(&n->changed, 1);
	kg_wake(&n->changed);
	pthread_join(n->thread, NULL);
	free(n);
}

int kg_native_tid(kg_native *n)
{
	while (!atomic_load(&n->tid))
		usleep(50);
	return n->tid;
}

void kg_native_post(kg_native *n, uint32_t kind, const uint64_t *list, uint64_t rows, uint32_t value)
{
	n->mailbox.kind = kind;
	n->mailbox.list = (uint64_t)list;
	n->mailbox.n = rows;
	n->mailbox.value = value;
	n->mailbox.stop = 0;
	n->mailbox.seq++;
	atomic_fetch_add(&n->changed, 1);
	kg_wake(&n->changed);
}

int kg_native_wait(kg_native *n, int64_t timeout_ns)
{
	int64_t deadline = kg_now() + timeout_ns;

	for (;;) {
		uint32_t changed = atomic_load(&n->changed);
		int64_t left = deadline - kg_now();

		if (n->mailbox.seq == n->mailbox.done)
			return 1;
		if (left <= 0)
			return 0;
		kg_wait(&n->changed, changed, left);
	}
}
