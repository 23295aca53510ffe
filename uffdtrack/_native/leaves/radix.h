/* A radix sort, 11 bits a pass, for one unsigned integer type. */
#ifndef UT_RADIX_H
#define UT_RADIX_H
#include <stddef.h>
#include <stdint.h>

/* Defines `TYPE *NAME(TYPE *v, TYPE *to, size_t n, int bits)`: sorts n numbers below 2 to the power of
 * `bits`. Both arrays have room for n; the returned one has the result. */
#define UT_RADIX(NAME, TYPE)                                                                       \
	static TYPE *NAME(TYPE *v, TYPE *to, size_t n, int bits)                                   \
	{                                                                                          \
		for (int shift = 0; n && shift < bits; shift += 11) {                              \
			uint32_t at[2048] = {0}, sum = 0;                                          \
			TYPE *swap = v;                                                            \
                                                                                                   \
			for (size_t i = 0; i < n; i++)                                             \
				at[v[i] >> shift & 2047]++;                                        \
			if (at[v[0] >> shift & 2047] == n) /* all are equal in these bits */       \
				continue;                                                          \
			for (int i = 0; i < 2048; i++) {                                           \
				uint32_t here = at[i];                                             \
                                                                                                   \
				at[i] = sum;                                                       \
				sum += here;                                                       \
			}                                                                          \
			for (size_t i = 0; i < n; i++)                                             \
				to[at[v[i] >> shift & 2047]++] = v[i];                             \
			v = to;                                                                    \
			to = swap;                                                                 \
		}                                                                                  \
		return v;                                                                          \
	}

#endif
