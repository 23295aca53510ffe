/* Kernel interfaces that older distribution headers lack. At run time we ask KVM whether it has them
 * (kvmglue/kvm.py). */
#ifndef KG_COMPAT_H
#define KG_COMPAT_H

#include <linux/kvm.h>
#include <stdint.h>
#include <sys/ioctl.h>

#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL /* Linux 6.1 */
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif
#ifndef KVM_DIRTY_LOG_INITIALLY_SET /* Linux 5.7 */
#define KVM_DIRTY_LOG_INITIALLY_SET (1 << 1)
#endif

#define KG_PAGE 4096ul

#endif
