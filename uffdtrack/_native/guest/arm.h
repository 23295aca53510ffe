/* The traps of one address space as a whole. */
#ifndef UT_ARM_H
#define UT_ARM_H
#include "tracker.h"

/* Set every trap of [base, base + bytes), which the userfaultfd's process has mapped. */
int ut_arm(int uffd, uint64_t base, uint64_t bytes);
/* Take the traps away, and let every waiting write go on. */
void ut_let_go(const ut_mm *mm);
#endif
