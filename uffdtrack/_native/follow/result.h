/* What Python asks of a window, in one call. */
#ifndef UT_RESULT_H
#define UT_RESULT_H
#include "space.h"

typedef struct {
	ut_runs want, data, zero, reset; /* see ut_space_give(); ranges whose earlier contents are void */
	uint8_t *contents;
	uint64_t bytes; /* of the contents */
	uint64_t touched, unreadable; /* pages; touched: 0 if that is not known */
} ut_result;

/* Of the last window. The lists are used again by the next call; `contents` is the space's. */
int ut_space_result(ut_space *s, ut_result *out);
void ut_result_free(ut_result *r);
#endif
