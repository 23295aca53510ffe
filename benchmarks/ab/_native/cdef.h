typedef struct {
	...;
} ab_native;
void ab_native_run(ab_native *n, uint8_t *ram);
void ab_native_quit(ab_native *n);
void ab_native_post(ab_native *n, const uint64_t *list, uint64_t rows, uint32_t value, int storm);
int ab_native_wait(ab_native *n, int64_t timeout_ns);
void ab_native_stop(ab_native *n);
uint64_t ab_native_written(const ab_native *n);
int64_t ab_native_took_ns(const ab_native *n);
