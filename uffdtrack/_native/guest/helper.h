/* A second thread for work on many pages: vCPUs that stand leave processors idle. */
#ifndef UT_HELPER_H
#define UT_HELPER_H
#include <stddef.h>

typedef struct ut_helper ut_helper;

/* Call `work` for 0 to n - 1, on this thread and, if that is not at other work, on the helper's, which is started when
 * it is first needed. In no order. Returns the first error, or 0. */
int ut_helped(ut_helper **helper, int (*work)(void *arg, size_t i), void *arg, size_t n);
/* End the thread. Not in a forked child, which has none. */
void ut_helper_end(ut_helper **helper);
#endif
