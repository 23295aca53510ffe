/* What own_calls.c, own_calls_signals.c and own_calls_filters.c have in common. */
#include <signal.h>

enum { UNSUPPORTED = 77, SPIN = 300000 };
extern volatile sig_atomic_t signals; /* that came to count() */

/* Ends the program: something was noticed. */
void noticed(const char *what);
void check(int right, const char *what);
void spin(void);
void count(int number);
void nap(long us);

/* own_calls_signals.c */
int signals_setup(void);
void signals_round(void);
int alternate_setup(void);
void alternate_round(void);
int handler_setup(void);
void handler_round(void);
int suspend_setup(void);
void suspend_round(void);
int step_setup(void);
void step_round(void);
int faults_setup(void);
int trap_setup(void);
void faults_round(void);

/* own_calls_filters.c */
int dispatch_setup(void);
void dispatch_round(void);
int filter_setup(void);
int filters_setup(void);
void filter_round(void);
int strict_setup(void);
void strict_round(void);
