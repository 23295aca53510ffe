/* What objects.c and objects_torn.c have in common. */
#include <stddef.h>
#include <sys/mman.h>

enum { MAKE, CHANGE };

static inline void *map(int fd, size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* One kind each, of objects_torn.c: makes it, or changes it. Not 0: there is none, and errno says why. */
int io_uring(int step);
int aio(int step);
int perf(int step);
int packet(int step);
int bpf(int step);
int kvm(int step);
int secret(int step);
int uring_gone(int step);
