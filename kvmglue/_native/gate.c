/* The gate of a VM. A vCPU stands at it when it is out of KVM_RUN and has written the gate's word to its place. */
#include "gate.h"
#include "gate_wait.h"

#include <signal.h>

void kg_gate_init(kg_gate *g)
{
	g->word = g->paused = 1;
	pthread_mutex_init(&g->lock, NULL);
}

void kg_gate_free(kg_gate *g)
{
	pthread_mutex_destroy(&g->lock);
}

int kg_kick_signal(void)
{
	return SIGRTMAX - 4;
}

void kg_tell(_Atomic uint32_t *word)
{
	atomic_fetch_add(word, 1);
	ut_futex_wake(word, UT_PRIVATE_WORD);
}

void kg_kick(kg_vcpu *v)
{
	if (v->started && atomic_load(&v->state) == KG_RUNS) {
		/* Either is enough where the other comes too late: the signal in KVM_RUN, the flag before it. */
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		syscall(SYS_tgkill, getpid(), atomic_load(&v->tid), kg_kick_signal());
	}
}

/* Under the lock: have the gate as those who want it closed say. */
static void set_gate(kg_vm *vm)
{
	int closed = vm->gate.paused || vm->gate.halts;

	if (closed == (int)(atomic_load(&vm->gate.word) & 1))
		return;
	atomic_fetch_add(&vm->gate.word, 1);
	if (closed)
		for (int i = 0; i < vm->nvcpus; i++)
			kg_kick(&vm->vcpu[i]);
	else
		ut_futex_wake(&vm->gate.word, UT_PRIVATE_WORD);
	/* For those that are just about to sleep, and those whose mailboxes have changed meanwhile. */
	kg_tell(&vm->gate.changed);
}

static void change_gate(kg_vm *vm, int paused, int halts)
{
	pthread_mutex_lock(&vm->gate.lock);
	vm->gate.paused = paused < 0 ? vm->gate.paused : paused;
	vm->gate.halts += halts;
	set_gate(vm);
	pthread_mutex_unlock(&vm->gate.lock);
}

void kg_gate_close(kg_vm *vm)
{
	change_gate(vm, 1, 0);
}

void kg_gate_open(kg_vm *vm)
{
	change_gate(vm, 0, 0);
}

void kg_gate_halt(kg_vm *vm)
{
	change_gate(vm, -1, 1);
}

void kg_gate_go_on(kg_vm *vm)
{
	change_gate(vm, -1, -1);
}

int kg_gate_closed(kg_vm *vm)
{
	return vm->gate.paused;
}

int kg_is_full(kg_vm *vm)
{
	return !!atomic_load(&vm->gate.full);
}

int kg_stands(kg_vm *vm, int vcpu)
{
	kg_vcpu *v = &vm->vcpu[vcpu];
	uint32_t word = atomic_load(&vm->gate.word);

	if (atomic_load(&v->state) != KG_RUNS)
		return 1;
	return (word & 1) && atomic_load(&v->parked) == word;
}

static int all_stand(void *arg)
{
	kg_vm *vm = arg;

	for (int i = 0; i < vm->nvcpus; i++)
		if (!kg_stands(vm, i))
			return 0;
	return 1;
}

static void kick_again(void *arg)
{
	kg_vm *vm = arg;

	for (int i = 0; i < vm->nvcpus; i++)
		if (!kg_stands(vm, i))
			kg_kick(&vm->vcpu[i]);
}

int kg_wait_parked(kg_vm *vm, int64_t timeout_ns)
{
	ut_gate_wait wait = {&vm->gate.event, UT_PRIVATE_WORD, all_stand, kick_again, vm};

	return ut_gate_wait_parked(&wait, timeout_ns);
}

/* -- the threshold ------------------------------------------------------------------------------- */

void kg_gate_full(kg_vm *vm)
{
	kg_gate_close(vm);
	kg_tell(&vm->gate.event);
}

typedef struct {
	kg_vm *vm;
	const _Atomic int32_t *closing;
	int64_t stop_ns;
} full_wait;

static int full(void *arg)
{
	const full_wait *w = arg;
	int err;

	if (atomic_load(w->closing))
		return -ESHUTDOWN;
	if (!atomic_load(&w->vm->gate.full))
		return 0;
	kg_gate_close(w->vm);
	err = kg_wait_parked(w->vm, w->stop_ns);
	return err ? err : 1;
}

int kg_gate_wait_full(kg_vm *vm, const _Atomic int32_t *closing, int64_t timeout_ns, int64_t stop_ns)
{
	full_wait w = {vm, closing, stop_ns};

	return ut_gate_wait_full(&vm->gate.event, UT_PRIVATE_WORD, full, &w, timeout_ns);
}

/* -- events -------------------------------------------------------------------------------------- */

void kg_ring_bell(kg_vm *vm)
{
	kg_tell(&vm->gate.changed);
}

uint32_t kg_wait_event(kg_vm *vm, uint32_t seen, int64_t timeout_ns)
{
	if (atomic_load(&vm->gate.event) == seen)
		ut_futex_wait(&vm->gate.event, seen, timeout_ns, UT_PRIVATE_WORD);
	return atomic_load(&vm->gate.event);
}
