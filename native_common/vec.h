/* A vector is three variables, or members of a struct: a pointer, a length and a capacity. */
#ifndef UT_VEC_H
#define UT_VEC_H
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

enum { UT_VEC_FIRST = 16 };

/* Make room for one more element. 0, or -ENOMEM: nothing has changed. */
#define VEC_ROOM(v, n, cap)                                                                        \
	({                                                                                         \
		int vec_err = 0;                                                                   \
                                                                                                   \
		if ((n) == (cap)) {                                                                \
			size_t vec_cap = (cap) ? (cap) * 2 : UT_VEC_FIRST;                         \
			__typeof__(v) vec_more = realloc((v), vec_cap * sizeof(*(v)));             \
                                                                                                   \
			if (vec_more) {                                                            \
				(v) = vec_more;                                                    \
				(cap) = vec_cap;                                                   \
			} else {                                                                   \
				vec_err = -ENOMEM;                                                 \
			}                                                                          \
		}                                                                                  \
		vec_err;                                                                           \
	})

/* Append. The last parameter is the element, which may be a compound literal. */
#define VEC_PUSH(v, n, cap, ...)                                                                   \
	({                                                                                         \
		int vec_full = VEC_ROOM(v, n, cap);                                                \
                                                                                                   \
		if (!vec_full)                                                                     \
			(v)[(n)++] = (__VA_ARGS__);                                                \
		vec_full;                                                                          \
	})

#endif
