/* Hangs and delays on purpose, for tests alone: UFFDTRACK_SABOTAGE=KIND:POINT makes us hang at the point of
 * that name. */
#ifndef UT_SABOTAGE_H
#define UT_SABOTAGE_H
void ut_sabotage(const char *point);
/* No sabotage in this process. */
void ut_sabotage_off(void);
#endif
