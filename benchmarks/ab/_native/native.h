/* A guest without KVM: processes that write rows of the RAM, one for each vCPU. */
#ifndef AB_NATIVE_H
#define AB_NATIVE_H
#include <stdatomic.h>
#include <stdint.h>

enum { AB_PAGE = 4096 };

/* In memory that the vCPU's process and the benchmark share; it begins as zeros. */
typedef struct {
	_Atomic uint32_t changed, quit;  /* changed: a futex */
	_Atomic uint32_t posted, done;   /* orders */
	uint32_t value, storm;           /* what is written; again and again until: */
	_Atomic uint32_t stop;
	_Atomic uint64_t written;        /* of this order */
	int64_t took_ns;                 /* the last one */
	uint64_t n, list[];              /* the order: so many rows */
} ab_native;

/* The vCPU: does orders until `ab_native_quit`. */
void ab_native_run(ab_native *n, uint8_t *ram);
void ab_native_quit(ab_native *n);
void ab_native_post(ab_native *n, const uint64_t *list, uint64_t rows, uint32_t value, int storm);
/* 1: the order is done; 0: timeout. */
int ab_native_wait(ab_native *n, int64_t timeout_ns);
void ab_native_stop(ab_native *n);
uint64_t ab_native_written(const ab_native *n);
int64_t ab_native_took_ns(const ab_native *n);
#endif
