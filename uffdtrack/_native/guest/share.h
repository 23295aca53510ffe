/* ring: the threshold as a budget of faults, from which vCPUs draw shares that grow smaller towards its end. */
#ifndef UT_SHARE_H
#define UT_SHARE_H
#include "lists.h"

/* So many faults more before the next signal; 0: none are left. */
int64_t ut_grant(ut_shared *s);
/* What a vCPU's event has counted. */
uint64_t ut_counted(int perf);
int ut_set_period(ut_vcpu *v, int perf, int64_t period);
/* Of one that stands until it has a share: faults of its own in our code are to send it no signals for later. */
#define UT_NO_PERIOD (1ll << 40)
#endif
