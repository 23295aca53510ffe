/* What calls.c, calls_work.c and calls_supervised.c have in common. */
#include <stdint.h>

struct counter {
	const char *name;
	void (*once)(void);
	volatile uint64_t n;
};

/* Ends the program: something was noticed. */
void die(const char *what);
void must(int right, const char *what);
void nap(int ms);
extern char dir[512]; /* that was given */
/* A path in it; of the last four calls of a thread each holds. */
const char *in_dir(const char *name);

/* calls_work.c */
extern struct counter on_files[], on_load[], on_allocate[];
/* calls_supervised.c */
int supervised(int own);
