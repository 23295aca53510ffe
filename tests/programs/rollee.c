/* A program to roll back. It holds a table in every kind of memory, all filled from one number; on each
 * line of input it does what the letter says, and answers with the number that its memory holds now, or
 * with "torn" where the parts disagree.
 *
 * s N  set everything to N        m  make new mappings and threads, remove and protect old ones
 * p    say pong      b    count of a thread that only counts
 * c    check only                 t  start a thread that stays     e  end a thread */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 64
#define PAGE 4096ul
#define TABLES 7

static uint64_t *tables[TABLES];
static uint64_t in_data = 1;
static uint64_t *moving;
static __thread uint64_t in_tls;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int to_end, ended;
static volatile uint64_t beats;

static void *stay(void *arg)
{
	volatile uint64_t own[512];

	for (int i = 0; i < 512; i++)
		own[i] = i;
	pthread_mutex_lock(&lock);
	while (!to_end)
		pthread_cond_wait(&changed, &lock);
	to_end--;
	ended++;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < 512; i++)
		if (own[i] != (uint64_t)i)
			abort();
	return arg;
}

static void *beat(void *arg)
{
	for (;;) {
		beats++;
		usleep(1000);
	}
	return arg;
}

static void set(uint64_t n)
{
	for (int t = 0; t < TABLES; t++)
		for (uint64_t i = 0; i < PAGES * 512; i += 64)
			tables[t][i] = n;
	in_data = in_tls = n;
	moving[0] = n;
}

static void answer(void)
{
	uint64_t n = in_data;
	int torn = in_tls != n || moving[0] != n;

	for (int t = 0; t < TABLES; t++)
		for (uint64_t i = 0; i < PAGES * 512; i += 64)
			torn |= tables[t][i] != n;
	if (torn)
		puts("torn");
	else
		printf("%lu\n", n);
}

static void mess_up(void)
{
	pthread_t t;
	int fd = open("/proc/self/exe", O_RDONLY);

	pthread_create(&t, NULL, stay, NULL);
	for (int i = 0; i < 4; i++)
		memset(mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 7,
		       1 << 20);
	mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	/* The table is gone, elsewhere, protected, zapped, replaced by a file. */
	munmap(tables[1], PAGES / 2 * PAGE);
	mprotect((char *)tables[2] + PAGE, 3 * PAGE, PROT_NONE);
	madvise(tables[3], PAGES * PAGE, MADV_DONTNEED);
	mmap(tables[4], 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
	close(fd);
	moving = mremap(moving, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	if (sbrk(5 * PAGE) == (void *)-1)
		abort();
	memset((char *)sbrk(0) - 5 * PAGE, 3, 5 * PAGE);
	in_data = 999;
}

int main(void)
{
	char line[64];
	pthread_t t;
	int file;

	setvbuf(stdout, NULL, _IONBF, 0);
	setvbuf(stdin, NULL, _IONBF, 0);
	for (int i = 0; i < TABLES; i++) {
		int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;

		if (i == 5) {
			fd = memfd_create("table", 0);
			flags = MAP_SHARED;
			if (ftruncate(fd, PAGES * PAGE))
				return 2;
		} else if (i == 6) {
			flags = MAP_SHARED | MAP_ANONYMOUS;
		}
		tables[i] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
		/* A gap, so that each table is a mapping of its own. */
		mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	}
	file = open("/proc/self/exe", O_RDONLY);
	moving = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	close(file);
	set(1);
	pthread_create(&t, NULL, beat, NULL);
	pthread_create(&t, NULL, stay, NULL);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		switch (line[0]) {
		case 's':
			/* Rolled back to the middle of reading this line, it reads the rest of another. */
			if (strtoull(line + 2, NULL, 10))
				set(strtoull(line + 2, NULL, 10));
			break;
		case 'm':
			mess_up();
			puts("messed");
			continue;
		case 'g':
			memset(sbrk(5 * PAGE), 3, 5 * PAGE);
			break;
		case 'k':
			sbrk(-5 * (long)PAGE);
			pthread_create(&t, NULL, stay, NULL);
			break;
		case 't':
			pthread_create(&t, NULL, stay, NULL);
			break;
		case 'e':
			pthread_mutex_lock(&lock);
			to_end++;
			pthread_cond_broadcast(&changed);
			while (!ended)
				pthread_cond_wait(&changed, &lock);
			ended--;
			pthread_mutex_unlock(&lock);
			pthread_mutex_lock(&lock); /* it is past its last instruction soon after */
			pthread_mutex_unlock(&lock);
			break;
		case 'p':
			puts("pong");
			continue;
		case 'b':
			printf("%lu\n", beats);
			continue;
		}
		answer();
	}
	return 0;
}
