/* The interface of guest program and host: addresses, ports, the mailbox of each vCPU. */
#ifndef KG_GUEST_H
#define KG_GUEST_H
#include <stdint.h>

/* Guest virtual addresses. The RAM's memslots are back to back there, as in GuestRam.array; the system memory
 * (code, page tables, mailboxes, stacks) has its physical address. */
#define KG_RAM_AT (1ull << 40)
#define KG_SYSTEM_AT (1ull << 38)

/* The system memory has the program, and behind it the task segment with an I/O bitmap of the ports below
 * 0x600. */
enum { KG_TASK_AT = 0x3000, KG_TASK_BYTES = 104 + 0x600 / 8 + 1, KG_PROGRAM_BYTES = 0x4000 };

enum {
	KG_PORT_EXIT = 0xf4,    /* the vCPU ends; the value is its exit code */
	KG_PORT_SERIAL = 0x3f8, /* 16550: transmit, and the line status: whether there is room */
	KG_PORT_STATUS = 0x3fd,
	KG_PORT_WAIT = 0x500,   /* sleep until the mailbox's seq is another than this value */
	KG_PORT_DONE = 0x504,   /* an order is done */
	KG_PORT_FILL = 0x508,   /* a device fills the page of this row (DMA): with the mailbox's value */
	KG_PORT_SEND = 0x510,    /* read: 1: a packet can be sent; written: send that in the page of this row */
	KG_PORT_RECEIVE = 0x514, /* read: 1: one may have come; written: it goes to the page of this row (DMA), which
				  * stays as it is if there is none */
};

enum { KG_LINE_READY = 0x60 }; /* of the line status: the transmitter is empty */
enum { KG_PACKET_MOST = 1514 };

/* At the beginning of a page. A packet of another length than 1 to KG_PACKET_MOST is not sent. */
typedef struct {
	uint16_t bytes;
	uint8_t data[KG_PACKET_MOST];
} kg_packet;

/* Orders. The first four take a list of rows, the next three a window of the RAM. */
enum {
	KG_WRITE, KG_STORM, KG_READ, KG_FILL,
	KG_SEQUENTIAL, KG_RANDOM, KG_HOT_COLD,
	KG_SAME, KG_COUNT, KG_CHECK, KG_SPIN, KG_CRASH,
	KG_BEACON, KG_ECHO, /* these have a window, too; images have the numbers */
};

/* The layout is fixed, since images have it. Volatile, since each side polls what the other one writes. */
typedef struct {
	volatile uint32_t seq;    /* host: a new order */
	volatile uint32_t done;   /* guest: the last order that it has finished */
	volatile uint32_t kind, value;
	volatile uint64_t first, pages;  /* the window, in rows */
	volatile uint64_t n;             /* writes to do, or rows in the list; COUNT, CHECK: 0: no end */
	volatile uint64_t seed, hot;     /* HOT_COLD: pages of the hot set */
	volatile uint64_t pace;          /* COUNT, BEACON: loops between two numbers; CHECK: operations between two checks */
	volatile uint64_t list, log;     /* addresses; log: the bitmap of rows that this vCPU has written, or 0 */
	volatile uint64_t written;       /* writes of this order so far */
	volatile uint32_t stop;          /* host: end STORM, COUNT, CHECK */
	volatile uint32_t vcpu;
} kg_mailbox;

/* The program is the whole of its section; the linker names the ends. */
#define KG_HIDDEN __attribute__((visibility("hidden")))
extern const char __start_kg_guest[] KG_HIDDEN, __stop_kg_guest[] KG_HIDDEN, kg_guest_entry[] KG_HIDDEN;
#endif
