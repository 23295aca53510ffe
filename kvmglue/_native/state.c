/* A vCPU's state, part by part, and the one it starts with. */
#include "vm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/user.h>

static const struct {
	int bytes;
	unsigned long get, set;
} parts[KG_STATES] = {
	[KG_STATE_SREGS] = {sizeof(struct kvm_sregs), KVM_GET_SREGS, KVM_SET_SREGS},
	[KG_STATE_REGS] = {sizeof(struct kvm_regs), KVM_GET_REGS, KVM_SET_REGS},
	[KG_STATE_XCRS] = {sizeof(struct kvm_xcrs), KVM_GET_XCRS, KVM_SET_XCRS},
	[KG_STATE_XSAVE] = {0, KVM_GET_XSAVE2, KVM_SET_XSAVE},
	[KG_STATE_DEBUGREGS] = {sizeof(struct kvm_debugregs), KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS},
	[KG_STATE_EVENTS] = {sizeof(struct kvm_vcpu_events), KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS},
	[KG_STATE_MP] = {sizeof(struct kvm_mp_state), KVM_GET_MP_STATE, KVM_SET_MP_STATE},
};

int kg_state_bytes(int part, int xsave)
{
	if (part < 0 || part >= KG_STATES)
		return -EINVAL;
	if (part != KG_STATE_XSAVE)
		return parts[part].bytes;
	return xsave > (int)sizeof(struct kvm_xsave) ? xsave : (int)sizeof(struct kvm_xsave);
}

/* The parts, back to back; then index and value of each MSR, 8 bytes each. */
int kg_get_state(kg_vm *vm, int vcpu, int xsave, const uint32_t *msr, uint32_t n, void *to)
{
	struct kvm_msrs *m = calloc(1, sizeof(*m) + n * sizeof(m->entries[0]));
	int fd = vm->vcpu[vcpu].fd, got = m ? 0 : -ENOMEM;

	for (int part = 0; part < KG_STATES && !got; part++) {
		if (ioctl(fd, parts[part].get, to) &&
		    (part != KG_STATE_XSAVE || ioctl(fd, KVM_GET_XSAVE, to))) /* before 5.17 */
			got = -errno;
		to = (char *)to + kg_state_bytes(part, xsave);
	}
	if (!got) {
		m->nmsrs = n;
		for (uint32_t i = 0; i < n; i++)
			m->entries[i].index = msr[i];
		got = ioctl(fd, KVM_GET_MSRS, m);
		got = got < 0 ? -errno : got;
	}
	for (int i = 0; i < got; i++)
		memcpy((uint64_t *)to + 2 * i, (uint64_t[]){m->entries[i].index, m->entries[i].data}, 16);
	free(m);
	return got;
}

int kg_set_state(kg_vm *vm, int vcpu, int part, const void *from)
{
	/* Where it goes on it may have something to do; the program looks for itself. It may have seen a device ready. */
	atomic_store(&vm->vcpu[vcpu].idle, 0);
	vm->vcpu[vcpu].may_print = vm->vcpu[vcpu].may_send = 1;
	return ioctl(vm->vcpu[vcpu].fd, parts[part].set, from) ? -errno : 0;
}

void kg_user_registers(const void *sregs, const void *regs, uint64_t out[KG_USER_REGISTERS])
{
	const struct kvm_sregs *s = sregs;
	const struct kvm_regs *r = regs;
	struct user_regs_struct u = {
		.r15 = r->r15, .r14 = r->r14, .r13 = r->r13, .r12 = r->r12, .rbp = r->rbp, .rbx = r->rbx,
		.r11 = r->r11, .r10 = r->r10, .r9 = r->r9, .r8 = r->r8, .rax = r->rax, .rcx = r->rcx,
		.rdx = r->rdx, .rsi = r->rsi, .rdi = r->rdi, .orig_rax = r->rax, .rip = r->rip,
		.cs = s->cs.selector, .eflags = r->rflags, .rsp = r->rsp, .ss = s->ss.selector,
		.fs_base = s->fs.base, .gs_base = s->gs.base, .ds = s->ds.selector, .es = s->es.selector,
		.fs = s->fs.selector, .gs = s->gs.selector,
	};

	_Static_assert(sizeof(u) == KG_USER_REGISTERS * sizeof(*out), "all of them");
	memcpy(out, &u, sizeof(u));
}

int kg_msr_list(int kvm, uint32_t *index, uint32_t room)
{
	struct kvm_msr_list *list = calloc(1, sizeof(*list) + room * sizeof(*index));
	int n;

	if (!list)
		return -ENOMEM;
	list->nmsrs = room;
	n = ioctl(kvm, KVM_GET_MSR_INDEX_LIST, list) ? -errno : (int)list->nmsrs;
	if (n > 0)
		memcpy(index, list->indices, n * sizeof(*index));
	free(list);
	return n;
}

typedef struct {
	struct kvm_msrs head;
	struct kvm_msr_entry entry;
} one_msr;

int kg_set_msr(kg_vm *vm, int vcpu, uint32_t index, uint64_t value)
{
	one_msr m = {.head.nmsrs = 1, .entry = {.index = index, .data = value}};
	int n = ioctl(vm->vcpu[vcpu].fd, KVM_SET_MSRS, &m);

	return n < 0 ? -errno : n;
}

static int set_cpuid(int kvm, int fd)
{
	enum { ENTRIES = 256 };
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + ENTRIES * sizeof(c->entries[0]));
	int err;

	if (!c)
		return -ENOMEM;
	c->nent = ENTRIES;
	err = ioctl(kvm, KVM_GET_SUPPORTED_CPUID, c) || ioctl(fd, KVM_SET_CPUID2, c) ? -errno : 0;
	free(c);
	return err;
}

static struct kvm_segment segment(int type, int selector, int code)
{
	return (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .dpl = 3,
		.db = !code, .s = 1, .l = code, .g = 1,
	};
}

/* 64-bit mode, ring 3: where there is no hardware for guests (kvm_pvm), KVM runs ring 3 as it is and emulates ring
 * 0 instruction by instruction. There is no descriptor table: nothing in the program loads a segment. Ports are
 * allowed by the task's I/O bitmap, since kvm_pvm does not keep IOPL. */
int kg_boot_state(kg_vm *vm, int kvm, int vcpu, uint64_t entry, uint64_t mailbox, uint64_t stack, uint64_t tables)
{
	enum { CR0_PE_MP_ET_NE_WP_PG = 0x80010033, CR4_PAE_OSFXSR_OSXMMEXCPT = 0x620, EFER_LME_LMA = 0x500 };
	struct kvm_regs regs = {
		.rip = entry + (uint64_t)(kg_guest_entry - __start_kg_guest), .rsp = stack, .rdi = mailbox,
		.rflags = 2,
	};
	int fd = vm->vcpu[vcpu].fd, err = set_cpuid(kvm, fd);
	struct kvm_sregs sregs;

	if (err)
		return err;
	if (ioctl(fd, KVM_GET_SREGS, &sregs))
		return -errno;
	sregs.cs = segment(11, 0x1b, 1);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment(3, 0x23, 0);
	sregs.tr = (struct kvm_segment){
		.base = entry + KG_TASK_AT, .limit = KG_TASK_BYTES - 1, .type = 11, .present = 1,
	};
	sregs.cr0 = CR0_PE_MP_ET_NE_WP_PG;
	sregs.cr3 = tables;
	sregs.cr4 = CR4_PAE_OSFXSR_OSXMMEXCPT;
	sregs.efer = EFER_LME_LMA;
	if (ioctl(fd, KVM_SET_SREGS, &sregs) || ioctl(fd, KVM_SET_REGS, &regs))
		return -errno;
	/* The others wait for a start-up interrupt otherwise. */
	if (ioctl(fd, KVM_SET_MP_STATE, &(struct kvm_mp_state){KVM_MP_STATE_RUNNABLE}) && errno != EINVAL)
		return -errno;
	return 0;
}

/* The program, and the task segment: all zeros but for the place of the I/O bitmap, and its end. */
int kg_load_program(uint8_t *to)
{
	uint64_t bytes = __stop_kg_guest - __start_kg_guest;
	uint8_t *task = to + KG_TASK_AT;

	if (bytes > KG_TASK_AT)
		return -ENOSPC;
	memcpy(to, __start_kg_guest, bytes);
	task[102] = 104;
	task[KG_TASK_BYTES - 1] = 0xff;
	return 0;
}
