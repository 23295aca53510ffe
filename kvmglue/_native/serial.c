/* The transmitter of the serial port: a queue from the guest to the host. */
#include "serial.h"
#include "cycle.h"
#include "gate.h"

#include <stdlib.h>
#include <string.h>

/* Each vCPU may have seen that the port is ready before another one's text came. A string instruction sends up to a
 * page at a time. */
enum { KG_SERIAL_ROOM = KG_SERIAL_MOST + KG_MAX_VCPUS * KG_PAGE };

void kg_serial_init(kg_serial *s)
{
	pthread_mutex_init(&s->lock, NULL);
}

void kg_serial_free(kg_serial *s)
{
	pthread_mutex_destroy(&s->lock);
	free(s->text);
}

static int make_serial_room(kg_serial *s, size_t n)
{
	size_t room = 2 * s->room + n + 4096;
	char *more;

	if (s->bytes + n <= s->room)
		return 1;
	more = realloc(s->text, room);
	if (!more)
		return 0;
	s->text = more;
	s->room = room;
	return 1;
}

static int has_room(const kg_serial *s)
{
	return s->bytes + s->held < KG_SERIAL_MOST;
}

int kg_serial_ready(kg_vm *vm)
{
	UT_LOCK(&vm->serial.lock);
	return has_room(&vm->serial);
}

void kg_serial_put(kg_vm *vm, const char *text, size_t n)
{
	kg_serial *s = &vm->serial;

	{
		UT_LOCK(&s->lock);
		if (s->bytes + s->held + n > KG_SERIAL_ROOM || !make_serial_room(s, n))
			return;
		memcpy(s->text + s->bytes, text, n);
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
	n = s->bytes < room ? s->bytes : room;
	memcpy(to, s->text, n);
	s->bytes -= n;
	s->held += n;
	memmove(s->text, s->text + n, s->bytes);
	return n;
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

int kg_serial_waits(kg_vm *vm)
{
	UT_LOCK(&vm->serial.lock);
	return vm->serial.bytes > 0;
}
