/* The guest program: 64-bit code in ring 3 with the right to do port I/O, without interrupts. It is copied
 * out of this module into guest memory, so it is in a section of its own and uses nothing outside of it. */
#include "guest.h"

#pragma GCC target("general-regs-only")
#pragma GCC optimize("O2", "no-jump-tables", "no-stack-protector", "no-tree-loop-distribute-patterns", \
		     "no-reorder-blocks-and-partition", "omit-frame-pointer")
#define GUEST __attribute__((section("kg_guest"), used, noinline))
#define PAGE 4096ull

/* Entered with the address of the mailbox in rdi. */
__asm__(".pushsection kg_guest,\"ax\",@progbits\n"
	".globl kg_guest_entry\n.hidden kg_guest_entry\n"
	"kg_guest_entry:\n"
	"	call kg_guest_main\n"
	"1:	jmp 1b\n"
	".popsection\n");

static inline void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "d"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "d"(port) : "memory");
}

static inline uint32_t in32(uint16_t port)
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "d"(port) : "memory");
	return value;
}

static inline uint8_t in8(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "d"(port) : "memory");
	return value;
}

static inline volatile uint8_t *row_at(uint64_t row)
{
	return (volatile uint8_t *)(KG_RAM_AT + row * PAGE);
}

static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Noted before the write: whatever is written is in the log. */
static inline void note(kg_mailbox *m, uint64_t row)
{
	volatile uint64_t *log = (volatile uint64_t *)m->log;

	if (log)
		log[row / 64] |= 1ull << (row % 64);
}

static inline void write_row(kg_mailbox *m, uint64_t row)
{
	note(m, row);
	row_at(row)[row % PAGE] = m->value;
	m->written++;
}

GUEST static void put(char c)
{
	while (!(in8(KG_PORT_STATUS) & 0x20))
		;
	out8(KG_PORT_SERIAL, c);
}

GUEST static void put_number(uint64_t n)
{
	char digits[20];
	int i = 0;

	do
		digits[i++] = '0' + n % 10;
	while (n /= 10);
	while (i)
		put(digits[--i]);
	put('\n');
}

GUEST static void by_list(kg_mailbox *m)
{
	const volatile uint64_t *list = (const volatile uint64_t *)m->list;
	uint32_t kind = m->kind;

	do {
		for (uint64_t i = 0; i < m->n; i++) {
			if (kind == KG_READ) {
				(void)row_at(list[i])[0];
				m->written++;
			} else if (kind == KG_FILL) {
				note(m, list[i]);
				out32(KG_PORT_FILL, list[i]);
				m->written++;
			} else {
				write_row(m, list[i]);
			}
		}
		m->value = (m->value + 1) & 0xff;
	} while (kind == KG_STORM && !m->stop);
}

GUEST static void by_window(kg_mailbox *m)
{
	uint64_t state = m->seed * 2 + 1, hot = m->hot ? m->hot : 1;

	for (uint64_t i = 0; i < m->n && !m->stop; i++) {
		uint64_t r = next_random(&state) >> 8;

		if (m->kind == KG_SEQUENTIAL)
			write_row(m, m->first + i % m->pages);
		else if (m->kind == KG_HOT_COLD && r % 10)
			write_row(m, m->first + r / 10 % hot);
		else
			write_row(m, m->first + r / 10 % m->pages);
	}
}

/* Every vCPU counts in one word of one page. */
GUEST static void same(kg_mailbox *m)
{
	for (uint64_t i = 0; i < m->n; i++) {
		note(m, m->first);
		__asm__ volatile("lock incq (%0)" : : "r"(row_at(m->first)) : "memory");
		m->written++;
	}
}

/* A number that goes up; each one is kept in memory, in a page after the other, and in a register. */
typedef struct {
	uint64_t number, first, pages, at;
} counter;

static inline void write_number(kg_mailbox *m, counter *c)
{
	note(m, c->first + c->at);
	*(volatile uint64_t *)row_at(c->first + c->at) = c->number;
}

/* Its pages are those of the window from the row `from` on. */
static inline counter counter_from(kg_mailbox *m, uint64_t from)
{
	counter c = {0, m->first + from, m->pages - from, 0};

	write_number(m, &c);
	return c;
}

/* A page or a register that is older than the other shows here. */
static inline void next_number(kg_mailbox *m, counter *c)
{
	if (*(volatile uint64_t *)row_at(c->first + c->at) != c->number) {
		put('!');
		out32(KG_PORT_EXIT, 1);
	}
	c->at = (c->at + 1) % c->pages;
	c->number++;
	write_number(m, c);
	m->written++;
}

static inline void wait_a_while(kg_mailbox *m)
{
	for (uint64_t i = 0; i < m->pace; i++)
		__asm__ volatile("" : : : "memory");
}

/* Prints the numbers from 1 on. */
GUEST static void count(kg_mailbox *m)
{
	counter c = counter_from(m, 0);

	while (!m->stop && (!m->n || c.number < m->n)) {
		next_number(m, &c);
		put_number(c.number);
		wait_a_while(m);
	}
}

/* -- packets ------------------------------------------------------------------------------------- */

/* An Ethernet frame, so that it can go to a TAP: a broadcast of type 0x88b5 (local experiments), a number, and what
 * follows it. */
enum { ETHERNET = 14, BEHIND = ETHERNET + 8 };

static inline volatile kg_packet *packet_at(uint64_t row)
{
	return (volatile kg_packet *)row_at(row);
}

static inline volatile uint64_t *number_in(volatile kg_packet *p)
{
	return (volatile uint64_t *)(p->data + ETHERNET);
}

/* Make a packet with number 0. */
GUEST static void make_packet(kg_mailbox *m, uint64_t row)
{
	volatile kg_packet *p = packet_at(row);

	note(m, row);
	p->bytes = BEHIND;
	for (int i = 0; i < 6; i++) {
		p->data[i] = 0xff;
		p->data[6 + i] = i ? 0 : 2;
	}
	p->data[11] = 1;
	p->data[12] = 0x88;
	p->data[13] = 0xb5;
	*number_in(p) = 0;
}

/* Send the next number; the page has to have the last one still. */
GUEST static void send_number(kg_mailbox *m, uint64_t row, counter *c)
{
	volatile kg_packet *p = packet_at(row);

	if (*number_in(p) != c->number)
		out32(KG_PORT_EXIT, 1);
	next_number(m, c);
	note(m, row);
	*number_in(p) = c->number;
	while (!in32(KG_PORT_SEND))
		;
	out32(KG_PORT_SEND, row);
}

/* Sends the numbers from 1 on. */
GUEST static void beacon(kg_mailbox *m)
{
	counter c = counter_from(m, 1);

	make_packet(m, m->first);
	while (!m->stop && (!m->n || c.number < m->n)) {
		send_number(m, m->first, &c);
		wait_a_while(m);
	}
}

/* Answers each packet with the number of the answer, and a copy of the packet, as far as it fits. */
GUEST static void echo(kg_mailbox *m)
{
	uint64_t question = m->first, answer = m->first + 1;
	counter c = counter_from(m, 2);
	volatile kg_packet *from = packet_at(question), *to = packet_at(answer);

	make_packet(m, answer);
	while (!m->stop && (!m->n || c.number < m->n)) {
		uint64_t bytes;

		if (!in32(KG_PORT_RECEIVE))
			continue;
		note(m, question);
		from->bytes = 0;
		out32(KG_PORT_RECEIVE, question);
		bytes = from->bytes;
		if (!bytes)
			continue;
		if (bytes > KG_PACKET_MOST - BEHIND)
			bytes = KG_PACKET_MOST - BEHIND;
		note(m, answer);
		for (uint64_t i = 0; i < bytes; i++)
			to->data[BEHIND + i] = from->data[i];
		to->bytes = BEHIND + bytes;
		send_number(m, answer, &c);
	}
}

/* A structure that tears: cells, one to a page, of which two are changed at a time, and a page of sums over them. A
 * page that is older than the others, or a register that is, shows in the sums. */
typedef struct {
	volatile uint64_t version;
	volatile uint64_t value;
} cell;

GUEST static cell *cell_at(kg_mailbox *m, uint64_t i)
{
	return (cell *)(row_at(m->first + 1 + i) + (i * 64) % PAGE);
}

GUEST static int torn(kg_mailbox *m, uint64_t cells, uint64_t time)
{
	volatile uint64_t *sums = (volatile uint64_t *)row_at(m->first);
	uint64_t versions = 0, value = 0;

	for (uint64_t i = 0; i < cells; i++) {
		versions += cell_at(m, i)->version;
		value += cell_at(m, i)->value;
	}
	return versions != sums[0] || value != 0 || time != sums[1];
}

GUEST static void check(kg_mailbox *m)
{
	volatile uint64_t *sums = (volatile uint64_t *)row_at(m->first);
	uint64_t cells = m->pages - 1, state = m->seed * 2 + 1, time = 0;

	sums[0] = sums[1] = 0;
	note(m, m->first);
	for (uint64_t i = 0; i < cells; i++) {
		note(m, m->first + 1 + i);
		cell_at(m, i)->version = cell_at(m, i)->value = 0;
	}
	while (!m->stop && (!m->n || time < m->n)) {
		uint64_t r = next_random(&state);
		cell *from = cell_at(m, (r >> 8) % cells), *to = cell_at(m, (r >> 36) % cells);

		note(m, m->first);
		note(m, m->first + 1 + (r >> 8) % cells);
		note(m, m->first + 1 + (r >> 36) % cells);
		sums[1] = ++time;
		from->value -= r & 0xff;
		to->value += r & 0xff;
		sums[0] += time - from->version;
		from->version = time;
		sums[0] += time - to->version;
		to->version = time;
		m->written++;
		if (time % m->pace)
			continue;
		if (torn(m, cells, time)) {
			put('T');
			put_number(time);
			out32(KG_PORT_EXIT, 1);
		}
		if (!m->vcpu)
			put_number(time);
	}
}

GUEST static void spin(kg_mailbox *m)
{
	for (uint64_t i = 0; i < m->n; i++)
		__asm__ volatile("" : : : "memory");
}

/* Touches what is mapped nowhere; without a handler for the fault, the vCPU shuts down. */
GUEST static void crash(void)
{
	*(volatile uint8_t *)(KG_RAM_AT << 1) = 1;
}

GUEST KG_HIDDEN void kg_guest_main(kg_mailbox *m)
{
	for (;;) {
		uint32_t seq = m->seq;

		if (seq == m->done) {
			out32(KG_PORT_WAIT, seq);
			continue;
		}
		m->written = 0;
		if (m->kind <= KG_FILL)
			by_list(m);
		else if (m->kind <= KG_HOT_COLD)
			by_window(m);
		else if (m->kind == KG_SAME)
			same(m);
		else if (m->kind == KG_COUNT)
			count(m);
		else if (m->kind == KG_CHECK)
			check(m);
		else if (m->kind == KG_SPIN)
			spin(m);
		else if (m->kind == KG_BEACON)
			beacon(m);
		else if (m->kind == KG_ECHO)
			echo(m);
		else
			crash();
		m->done = seq;
		out32(KG_PORT_DONE, seq);
	}
}
