/* ring: the threshold as a budget of faults, from which vCPUs draw shares that grow smaller towards its end. */
#ifndef UT_SHARE_H
#define UT_SHARE_H
#include "lists.h"

/* How many more faults a vCPU may have before its next signal; 0: none are left. */
int64_t ut_grant(ut_shared *s);
/* The count of a vCPU's event. */
uint64_t ut_counted(int perf);
int ut_set_period(ut_vcpu *v, int perf, int64_t period);
/* The period of a vCPU that stands until it has a share: its faults in our code must not queue signals. */
#define UT_NO_PERIOD (1ll << 40)
#endif
