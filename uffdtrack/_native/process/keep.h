#ifndef UT_KEEP_H
#define UT_KEEP_H

/* Wait for a child, write its wait status (4 bytes) to `to`, and end. Gives this process's memory back first,
 * so it never returns. The caller must be a fork that has one thread. */
void ut_keep(int child, int to) __attribute__((noreturn));
#endif
