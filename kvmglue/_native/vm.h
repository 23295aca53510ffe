/* A virtual machine on /dev/kvm: memslots, vCPU threads that run outside of Python, their gate, and some
 * ports. No interrupts. */
#ifndef KG_VM_H
#define KG_VM_H
#include "compat.h"
#include "guest.h"
#include "slots.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

enum { KG_MAX_VCPUS = 16 };
enum { KG_NEW, KG_RUNS, KG_ENDED };
/* Why a vCPU has ended, beside KVM's own exit reasons. */
enum { KG_END_EXIT = 1000, KG_END_ERRNO, KG_END_TOLD };

/* One vCPU's entries into KVM_RUN, and how many of them a kick, a port access or a full dirty ring has
 * ended. */
typedef struct {
	uint64_t runs, kicks, ports, fulls;
} kg_counts;

struct kg_vm;

/* A dirty log, as the threads of vCPUs see it: they call it. */
typedef struct kg_listener {
	/* A vCPU's dirty ring is full. 0, or -errno: the vCPU cannot go on. */
	int (*ring_full)(struct kg_listener *l);
	/* A device has written n rows. */
	void (*device_wrote)(struct kg_listener *l, uint64_t row, uint64_t n);
} kg_listener;

/* Where vCPUs stand. It is open unless the user, a full ring or a tracker wants it closed. */
typedef struct {
	_Atomic uint32_t word;    /* odd: closed; also a futex */
	int32_t paused, halts;    /* the user or a full ring closes it; trackers, for a moment. Locked */
	pthread_mutex_t lock;
	_Atomic uint32_t changed; /* futex of vCPUs that sleep: mailbox or gate has changed, the VM ends */
	_Atomic uint32_t event;   /* futex of the host: there is something to look at */
	_Atomic uint32_t full;    /* a dirty ring is full, and there is a threshold */
} kg_gate;

/* At so many bytes or packets, those that the host holds included, a device is not ready: the guest waits. */
enum { KG_SERIAL_MOST = 1 << 20, KG_PACKETS_MOST = 4096 };

/* What the guest has printed. */
typedef struct {
	pthread_mutex_t lock;
	char *text;
	size_t first, bytes;
	int64_t held; /* taken by the host, and not passed on by it */
} kg_serial;

/* What the guest has sent, and a descriptor whose packets it gets, or -1. */
typedef struct {
	pthread_mutex_t lock;
	kg_packet *queue;
	size_t first, packets;
	int64_t held;
	int32_t wire;
} kg_net;

typedef struct {
	struct kg_vm *vm;
	int32_t number, fd;
	struct kvm_run *run;
	size_t run_bytes;
	kg_mailbox *mailbox;
	pthread_t thread;
	int32_t started, port_due;  /* port_due: the next KVM_RUN has to complete a port access */
	_Atomic int32_t tid;
	_Atomic uint32_t state;
	_Atomic uint32_t parked;    /* the gate's word that it stands at */
	_Atomic uint32_t idle;      /* it sleeps until its mailbox changes */
	int64_t began_ns, took_ns;  /* its last order */
	uint32_t idle_seq;
	int32_t naps;               /* what it polls for, if anything */
	uint32_t nap_seen;          /* gate.changed before the device was looked at */
	int32_t may_print, may_send; /* the device was ready when it looked, or as far as we know */
	int32_t reason, code;       /* why it has ended */
	uint64_t detail;
	_Atomic uint64_t runs, kicks, ports, fulls; /* see kg_counts */
} kg_vcpu;

typedef struct kg_vm {
	int32_t fd, nvcpus;
	uint8_t *ram, *system;
	uint64_t rows, system_bytes;
	ut_slots slots;
	kg_vcpu vcpu[KG_MAX_VCPUS];
	kg_gate gate;
	kg_serial serial;
	kg_net net;
	_Atomic uint32_t quit;
	kg_listener *_Atomic listener;
	uint32_t ring_at[KG_MAX_VCPUS]; /* entries that a tracker has taken since the VM was made */
} kg_vm;

/* Functions return >= 0 or -errno. */
int kg_open(const char *path);
int kg_create_vm(int kvm);
int kg_check(int fd, int capability);
/* The VM owns `fd`, KVM's descriptor of it, from then on. The caller owns the memory, which has to outlive
 * the VM. */
int kg_vm_open(int fd, uint8_t *ram, const ut_slot *slots, int nslots, uint8_t *system, uint64_t system_bytes,
	       kg_vm **out);
void kg_vm_close(kg_vm *vm);
/* KVM's dirty rings, of `bytes` each; before the first vCPU. */
int kg_enable_ring(kg_vm *vm, uint32_t bytes);
/* Make a vCPU, which starts in the guest program; its thread stands at the gate. */
int kg_vcpu_open(kg_vm *vm, int kvm, uint64_t mailbox, uint64_t stack, uint64_t tables);
int kg_vcpu_tid(const kg_vm *vm, int vcpu);
int kg_vcpu_state(const kg_vm *vm, int vcpu);
kg_counts kg_vcpu_counts(const kg_vm *vm, int vcpu);
int kg_set_slots(kg_vm *vm, uint32_t flags);

/* Take what the guest has printed, and what it has sent: at most `most` packets, back to back, and their lengths. It
 * counts as held by the host. */
size_t kg_take_serial(kg_vm *vm, char *to, size_t room);
size_t kg_take_packets(kg_vm *vm, uint8_t *to, uint16_t *bytes, size_t most);
/* The host holds so many bytes and packets more; below 0: fewer. In any thread. */
void kg_hold(kg_vm *vm, int64_t serial, int64_t packets);
/* Whether the guest has sent something that was not taken yet. */
int kg_has_output(kg_vm *vm);
/* The guest gets the packets that can be read from this descriptor, which does not block; before it first runs. */
int kg_connect(kg_vm *vm, int fd);
int kg_disconnect(kg_vm *vm);

/* state.c. KVM wants the parts set in this order. */
enum {
	KG_STATE_SREGS, KG_STATE_REGS, KG_STATE_XCRS, KG_STATE_XSAVE, KG_STATE_DEBUGREGS, KG_STATE_EVENTS,
	KG_STATE_MP, KG_STATES,
};
/* The size of one part in bytes; `xsave`: that of the XSAVE area (KVM_CAP_XSAVE2). */
int kg_state_bytes(int part, int xsave);
/* All parts, and those of `n` MSRs that KVM gives: returns how many, up to the first that it refuses. */
int kg_get_state(kg_vm *vm, int vcpu, int xsave, const uint32_t *msr, uint32_t n, void *to);
int kg_set_state(kg_vm *vm, int vcpu, int part, const void *from);
/* struct user_regs_struct (sys/user.h), of two parts. */
enum { KG_USER_REGISTERS = 27 };
void kg_user_registers(const void *sregs, const void *regs, uint64_t out[KG_USER_REGISTERS]);
int kg_msr_list(int kvm, uint32_t *index, uint32_t room);
/* 1: it is set. 0: KVM refuses it. */
int kg_set_msr(kg_vm *vm, int vcpu, uint32_t index, uint64_t value);
int kg_boot_state(kg_vm *vm, int kvm, int vcpu, uint64_t entry, uint64_t mailbox, uint64_t stack, uint64_t tables);
/* Copy the guest program into the first KG_PROGRAM_BYTES of the system memory, which are zeroed. */
int kg_load_program(uint8_t *to);
#endif
