/* The guest of benchmarks/rate.py: what a vCPU does. A shared library for ctypes. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>

/* In memory that the vCPU and the benchmark share. A vCPU writes `hot` pages again and again, the same in every
 * cycle, and `anew` others, which are drawn when `cycle` changes. */
struct rate_control {
	_Atomic uint64_t steps;
	_Atomic uint64_t turns;  /* how often it went over all of its pages in this cycle */
	_Atomic uint32_t cycle, quit;
	uint64_t hot, anew;
	uint64_t pages;          /* in `page`, in no order: the hot ones, then those to draw from */
	uint32_t page[];
};

enum { WORK = 24 }; /* multiplications between two writes: about 30 ns */

void rate_run(uint8_t *ram, struct rate_control *c)
{
	uint64_t steps = atomic_load(&c->steps), n = c->hot + c->anew, rest = c->pages - c->hot, x = 1;

	while (!atomic_load_explicit(&c->quit, memory_order_relaxed)) {
		uint32_t cycle = atomic_load_explicit(&c->cycle, memory_order_relaxed);
		uint64_t first = cycle * c->anew % rest;

		for (uint64_t turn = 0; cycle == atomic_load_explicit(&c->cycle, memory_order_relaxed); turn++) {
			atomic_store_explicit(&c->turns, turn, memory_order_relaxed);
			if (atomic_load_explicit(&c->quit, memory_order_relaxed))
				return;
			for (uint64_t i = 0; i < n && cycle == atomic_load_explicit(&c->cycle, memory_order_relaxed); i++) {
				uint64_t place = i < c->hot ? i : c->hot + (first + i - c->hot) % rest;

				for (int k = 0; k < WORK; k++)
					x = x * 0x5851f42d4c957f2dull + 1;
				*(volatile uint64_t *)(ram + c->page[place] * 4096ull + (x >> 55) * 8) = x;
				atomic_store_explicit(&c->steps, ++steps, memory_order_relaxed);
			}
		}
	}
}
