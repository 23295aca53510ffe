#include "net.h"
#include "cycle.h"
#include "gate.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* One more for each vCPU. */
enum { ROOM = KG_PACKETS_MOST + KG_MAX_VCPUS };

int kg_net_init(kg_net *net)
{
	net->wire = -1;
	pthread_mutex_init(&net->lock, NULL);
	net->queue = calloc(ROOM, sizeof(*net->queue)); /* the kernel gives the memory as it is used */
	return net->queue ? 0 : -ENOMEM;
}

void kg_net_free(kg_net *net)
{
	pthread_mutex_destroy(&net->lock);
	free(net->queue);
	if (net->wire >= 0)
		close(net->wire);
}

/* -- to the host --------------------------------------------------------------------------------- */

static int has_room(const kg_net *net)
{
	return net->held + (int64_t)net->packets < KG_PACKETS_MOST;
}

int kg_net_ready(kg_vm *vm)
{
	UT_LOCK(&vm->net.lock);
	return has_room(&vm->net);
}

int kg_net_hold(kg_vm *vm, int64_t n)
{
	kg_net *net = &vm->net;
	int had;

	UT_LOCK(&net->lock);
	had = has_room(net);
	net->held += n;
	return !had && has_room(net);
}

void kg_net_put(kg_vm *vm, const kg_packet *packet, int32_t *promise)
{
	kg_net *net = &vm->net;

	{
		UT_LOCK(&net->lock);
		if (!has_room(net) && !*promise)
			return;
		*promise = *promise && has_room(net);
		if (net->packets == ROOM)
			return;
		net->queue[(net->first + net->packets++) % ROOM] = *packet;
	}
	kg_tell(&vm->gate.event);
}

/* Lengths are as they were checked when the packet was queued. */
size_t kg_take_packets(kg_vm *vm, uint8_t *to, uint16_t *bytes, size_t most)
{
	kg_net *net = &vm->net;
	size_t n;

	UT_LOCK(&net->lock);
	for (n = 0; n < most && net->packets; n++) {
		const kg_packet *packet = &net->queue[net->first];

		bytes[n] = packet->bytes;
		memcpy(to, packet->data, packet->bytes);
		to += packet->bytes;
		net->first = (net->first + 1) % ROOM;
		net->packets--;
		net->held++;
	}
	if (!net->packets)
		net->first = 0; /* so that few packets take little memory */
	return n;
}

int kg_net_waits(kg_vm *vm)
{
	UT_LOCK(&vm->net.lock);
	return vm->net.packets > 0;
}

/* -- from the wire ------------------------------------------------------------------------------- */

int kg_connect(kg_vm *vm, int fd)
{
	int own;

	if (vm->net.wire >= 0)
		return -EBUSY;
	own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return -errno;
	vm->net.wire = own;
	return 0;
}

int kg_disconnect(kg_vm *vm)
{
	for (int i = 0; i < vm->nvcpus; i++)
		if (!kg_stands(vm, i))
			return -EBUSY;
	if (vm->net.wire >= 0)
		close(vm->net.wire);
	vm->net.wire = -1;
	return 0;
}

static int await_packet(kg_vm *vm, int64_t timeout_ns, const sigset_t *mask)
{
	struct timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};
	struct pollfd p = {vm->net.wire, POLLIN, 0}; /* below 0: none */

	return ppoll(&p, 1, &ts, mask);
}

int kg_net_came(kg_vm *vm)
{
	return await_packet(vm, 0, NULL) > 0;
}

void kg_net_await(kg_vm *vm, const sigset_t *mask, int64_t timeout_ns)
{
	await_packet(vm, timeout_ns, mask);
}

void kg_net_receive(kg_vm *vm, kg_packet *packet)
{
	uint8_t data[KG_PACKET_MOST + 1];
	ssize_t n = vm->net.wire < 0 ? 0 : read(vm->net.wire, data, sizeof(data));

	/* An error is the wire's, such as ECONNREFUSED for a packet that was sent; one that is too long is lost. */
	packet->bytes = n < 0 || n > KG_PACKET_MOST ? 0 : n;
	memcpy(packet->data, data, packet->bytes);
}
