/* A guest without KVM: a native thread of this process that writes rows of the RAM. */
#ifndef AB_NATIVE_H
#define AB_NATIVE_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum { AB_PAGE = 4096 };

typedef struct {
	uint8_t *ram;
	pthread_t thread;
	_Atomic int32_t tid;
	_Atomic uint32_t changed, quit;  /* changed: a futex */
	_Atomic uint32_t posted, done;   /* orders */
	const uint64_t *list;            /* the order: rows, */
	uint64_t n;                      /* so many, */
	uint32_t value, storm;           /* what is written; again and again until: */
	_Atomic uint32_t stop;
	_Atomic uint64_t written;        /* of this order */
	int64_t took_ns;                 /* the last one */
} ab_native;

/* 0 or -errno. */
int ab_native_open(uint8_t *ram, ab_native **out);
void ab_native_close(ab_native *n);
int ab_native_tid(ab_native *n);
/* `list` has to last until the order is done. */
void ab_native_post(ab_native *n, const uint64_t *list, uint64_t rows, uint32_t value, int storm);
/* 1: the order is done; 0: timeout. */
int ab_native_wait(ab_native *n, int64_t timeout_ns);
void ab_native_stop(ab_native *n);
uint64_t ab_native_written(const ab_native *n);
int64_t ab_native_took_ns(const ab_native *n);
#endif
