#include "engine.h"
#include "gate.h"
#include "gate_wait.h"
#include "harvest.h"
#include "pause.h"

typedef struct {
	ut_tracker *t;
	uint32_t word;
} pause_of;

static int stands(void *arg)
{
	const pause_of *p = arg;
	int waiting = 0, gone = 0;

	for (int i = 0; i < p->t->s->nvcpus; i++) {
		ut_vcpu *v = &p->t->s->vcpu[i];
		uint32_t state = atomic_load(&v->state);

		gone |= state == UT_VCPU_GONE;
		waiting |= state == UT_VCPU_BOUND && v->forced > 0 && atomic_load(&v->parked) != p->word;
	}
	if (gone)
		return -ESRCH;
	if (waiting)
		return atomic_load(&p->t->cycle.closing) ? -ESHUTDOWN : 0;
	return ut_any_dead(p->t) ? -EPIPE : 1;
}

/* And find out who has ended. */
static void call_vcpus(void *arg)
{
	const pause_of *p = arg;

	ut_gate_call(p->t->s);
}

int ut_wait_parked(ut_tracker *t, uint32_t word, int64_t timeout_ns)
{
	pause_of p = {t, word};
	ut_gate_wait wait = {&t->s->gate.event, UT_SHARED_WORD, stands, call_vcpus, &p};

	return ut_gate_wait_parked(&wait, timeout_ns);
}

static uint32_t close_gate(ut_tracker *t)
{
	UT_LOCK(&t->cycle.lock);
	t->paused = 1;
	return ut_gate_close_here(t->s);
}

static void open_gate(ut_tracker *t)
{
	t->paused = 0;
	ut_gate_open(t->s);
}

int ut_pause(ut_tracker *t, int64_t timeout_ns)
{
	UT_ENTER(&t->cycle);
	return ut_wait_parked(t, close_gate(t), timeout_ns);
}

/* Open the gate; 0: the lists are full; or -errno. */
static int open_unless_full(ut_tracker *t)
{
	int may = 1;

	UT_LOCK(&t->cycle.lock);
	if (atomic_load(&t->s->gate.full))
		may = t->ops->not_full(t);
	if (may > 0)
		open_gate(t);
	return may;
}

int ut_resume(ut_tracker *t)
{
	int may;

	UT_ENTER(&t->cycle);
	may = open_unless_full(t);
	return may > 0 ? 0 : may ? may : -EBUSY;
}

void ut_let_run(ut_tracker *t)
{
	ut_cycle *entered = ut_cycle_enter(&t->cycle);

	if (!entered)
		return;
	pthread_mutex_lock(&t->cycle.lock);
	open_gate(t);
	pthread_mutex_unlock(&t->cycle.lock);
	ut_cycle_leave(&entered);
}

typedef struct {
	ut_tracker *t;
	int64_t stop_ns;
} full_wait;

static int full(void *arg)
{
	const full_wait *w = arg;
	ut_tracker *t = w->t;
	int err;

	if (atomic_load(&t->cycle.closing))
		return -ESHUTDOWN;
	if (ut_any_dead(t))
		return -EPIPE;
	for (int i = 0; i < t->s->nvcpus; i++)
		if (t->s->vcpu[i].state == UT_VCPU_GONE)
			return -ESRCH;
	if (!atomic_load(&t->s->gate.full))
		return 0;
	TRY(ut_wait_parked(t, close_gate(t), w->stop_ns));
	err = open_unless_full(t);
	return err < 0 ? err : !err;
}

int ut_wait_full(ut_tracker *t, int64_t timeout_ns, int64_t stop_ns)
{
	full_wait w = {t, stop_ns};

	UT_ENTER(&t->cycle);
	return ut_gate_wait_full(&t->s->gate.event, UT_SHARED_WORD, full, &w, timeout_ns);
}

void ut_set_halted(ut_tracker *t, int halted)
{
	atomic_store(&t->s->gate.halted, halted);
}
