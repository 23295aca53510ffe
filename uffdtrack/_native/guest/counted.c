/* The threshold of engines that count each page as it is listed. */
#include "engine.h"
#include "gate.h"

int ut_counted_host_wrote(ut_tracker *t)
{
	int64_t threshold = atomic_load(&t->s->limit.threshold);

	if (threshold && atomic_load(&t->s->limit.count) >= threshold)
		ut_gate_full(t->s);
	return 0;
}

/* A fault that was on its way when the cycle ended may have said so too late. */
int ut_counted_not_full(ut_tracker *t)
{
	if (atomic_load(&t->s->limit.count) >= atomic_load(&t->s->limit.threshold))
		return 0;
	t->stats.false_full++;
	atomic_store(&t->s->gate.full, 0);
	return 1;
}
