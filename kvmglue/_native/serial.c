/* The transmitter of the serial port: a queue from the guest to the host. */
#include "serial.h"
#include "cycle.h"
#include "gate.h"

#include <stdlib.h>
#include <string.h>

/* The last that came while there was room, and one more for each vCPU. */
enum { ROOM = KG_SERIAL_MOST + (1 + KG_MAX_VCPUS) * KG_PAGE };

int kg_serial_init(kg_serial *s)
{
	pthread_mutex_init(&s->lock, NULL);
	s->text = calloc(ROOM, 1); /* the kernel gives the memory as it is used */
	return s->text ? 0 : -ENOMEM;
}

void kg_serial_free(kg_serial *s)
{
	pthread_mutex_destroy(&s->lock);
	free(s->text);
}

static int has_room(const kg_serial *s)
{
	return s->held + (int64_t)s->bytes < KG_SERIAL_MOST;
}

int kg_serial_ready(kg_vm *vm)
{
	UT_LOCK(&vm->serial.lock);
	return has_room(&vm->serial);
}

int kg_serial_hold(kg_vm *vm, int64_t n)
{
	kg_serial *s = &vm->serial;
	int had;

	UT_LOCK(&s->lock);
	had = has_room(s);
	s->held += n;
	return !had && has_room(s);
}

/* Bytes that are back to back from a place on. */
static size_t in_a_row(size_t at, size_t n)
{
	return n < ROOM - at ? n : ROOM - at;
}

void kg_serial_put(kg_vm *vm, const char *text, size_t n, int32_t *promise)
{
	kg_serial *s = &vm->serial;

	{
		UT_LOCK(&s->lock);
		size_t at = (s->first + s->bytes) % ROOM, part = in_a_row(at, n);

		if (!has_room(s) && !*promise)
			return;
		*promise = *promise && has_room(s);
		if (s->bytes + n > ROOM)
			return;
		memcpy(s->text + at, text, part);
		memcpy(s->text, text + part, n - part);
		s->bytes += n;
		if (has_room(s) && !memchr(text, '\n', n))
			return;
	}
	kg_tell(&vm->gate.event);
}

size_t kg_take_serial(kg_vm *vm, char *to, size_t room)
{
	kg_serial *s = &vm->serial;
	size_t n;

	UT_LOCK(&s->lock);
	n = in_a_row(s->first, s->bytes < room ? s->bytes : room);
	memcpy(to, s->text + s->first, n);
	s->bytes -= n;
	s->first = s->bytes ? (s->first + n) % ROOM : 0; /* so that a little takes little memory */
	s->held += n;
	return n;
}

int kg_serial_waits(kg_vm *vm)
{
	UT_LOCK(&vm->serial.lock);
	return vm->serial.bytes > 0;
}
