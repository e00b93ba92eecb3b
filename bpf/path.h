/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The path of a file, and what kind of file it is.
 */
#ifndef ORB8_PATH_H
#define ORB8_PATH_H

#include "core.h"

#define PATH_BYTES 4096 /* as many as a path has at most, a power of two */
#define PATH_NAME_BYTES 256
#define PATH_STEPS 128 /* names and mounts on the way up */

#define TMPFS_MAGIC 0x01021994
#define HUGETLBFS_MAGIC 0x958458f6
#define OVERLAYFS_SUPER_MAGIC 0x794c7630

struct qstr {
	u32 len;
	const unsigned char *name;
} __core;

struct super_block {
	unsigned long s_magic;
} __core;

struct timespec64 {
	long long tv_sec;
	long tv_nsec;
} __core;

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	const unsigned int i_nlink;
	long long i_ctime_sec; /* since 6.11, with i_ctime_nsec */
	u32 i_ctime_nsec;
} __core;

struct inode___v6_6 {
	struct timespec64 __i_ctime;
} __core;

struct inode___v6_5 {
	struct timespec64 i_ctime;
} __core;

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
} __core;

struct vfsmount {
	struct dentry *mnt_root;
} __core;

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
} __core;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} __core;

struct file {
	struct inode *f_inode;
	struct path f_path;
	void *private_data;
} __core;

enum path_flag {
	PATH_TRUNCATED = 1, /* only the end of the path is known */
	PATH_DETACHED = 2, /* a name that the kernel has given to what is in no folder */
};

/* A path is built from its end. It stands before b[PATH_BYTES]; what is behind is
 * room for the verifier. */
struct path_buffer {
	char b[PATH_BYTES + PATH_NAME_BYTES];
	volatile u32 at; /* where it begins, so far */
	volatile u32 flags; /* enum path_flag */
};

/* Puts a name before what is in buf, and returns whether it fits. */
static __always_inline bool add_name(struct path_buffer *buf, struct dentry *dentry, bool slash)
{
	const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
	u64 len = BPF_CORE_READ(dentry, d_name.len);
	u64 at = buf->at;

	if (len >= PATH_NAME_BYTES)
		len = PATH_NAME_BYTES - 1;
	if (at < len + slash)
		return false;
	at -= len;
	/* For old verifiers, which forget what is known of the difference. */
	asm volatile("" : "+r"(at), "+r"(len));
	bpf_probe_read_kernel(&buf->b[at & (PATH_BYTES - 1)], len & (PATH_NAME_BYTES - 1), name);
	if (slash) {
		at--;
		buf->b[at & (PATH_BYTES - 1)] = '/';
	}
	buf->at = at;
	return true;
}

/* Writes the path of a file, up to the root of its mount namespace, to buf, where it
 * begins at buf->at. A file on a mount that is in no namespace any more has the path
 * that it has on that mount. The names are read without a lock: of a file that is
 * renamed just now the path may be neither the old nor the new one.
 *
 * What changes from step to step is in buf and not in registers, so that the verifier
 * finds each step like the one before. */
static __always_inline void read_path(struct path_buffer *buf, struct path *path)
{
	struct vfsmount *vfs = BPF_CORE_READ(path, mnt);
	struct mount *mnt = (void *)vfs - bpf_core_field_offset(struct mount, mnt), *parent;
	struct dentry *dentry = BPF_CORE_READ(path, dentry), *up;

	buf->at = PATH_BYTES;
	buf->flags = PATH_TRUNCATED;
	for (int i = 0; i < PATH_STEPS; i++) {
		if (dentry == BPF_CORE_READ(mnt, mnt.mnt_root)) {
			parent = BPF_CORE_READ(mnt, mnt_parent);
			if (parent == mnt || !parent) {
				buf->flags = 0;
				break;
			}
			dentry = BPF_CORE_READ(mnt, mnt_mountpoint);
			mnt = parent;
			continue;
		}
		up = BPF_CORE_READ(dentry, d_parent);
		if (up == dentry || !up) {
			if (add_name(buf, dentry, false))
				buf->flags = PATH_DETACHED;
			break;
		}
		if (!add_name(buf, dentry, true))
			break;
		dentry = up;
	}
	if (buf->at == PATH_BYTES) { /* the root itself */
		buf->b[PATH_BYTES - 1] = '/';
		buf->at = PATH_BYTES - 1;
	}
}

/* Whether the file whose path is in buf is one of memfd_create: one of shmem's that is
 * in no folder, under a name that nothing else has. */
static __always_inline bool is_memfd(struct path_buffer *buf, struct inode *inode)
{
	unsigned long magic = BPF_CORE_READ(inode, i_sb, s_magic);
	char *s = &buf->b[buf->at & (PATH_BYTES - 1)];

	if (!(buf->flags & PATH_DETACHED) || (magic != TMPFS_MAGIC && magic != HUGETLBFS_MAGIC))
		return false;
	return s[0] == 'm' && s[1] == 'e' && s[2] == 'm' && s[3] == 'f' && s[4] == 'd' && s[5] == ':';
}

static __always_inline bool on_overlay(struct inode *inode)
{
	return BPF_CORE_READ(inode, i_sb, s_magic) == OVERLAYFS_SUPER_MAGIC;
}

/* Whether a file of an overlay is in the writable layer: then its inode has an upper
 * dentry, which is what follows struct inode in struct ovl_inode (__upperdentry in
 * fs/overlayfs/ovl_entry.h, since 4.13). That type is a module's on most kernels. */
static __always_inline bool in_upper(struct inode *inode)
{
	void *upper = 0;

	bpf_probe_read_kernel(&upper, sizeof(upper), (void *)inode + bpf_core_type_size(struct inode));
	return upper;
}

/* When a file or its attributes last changed, in Unix nanoseconds. */
static __always_inline u64 ctime_ns(struct inode *inode)
{
	struct inode___v6_6 *v6_6 = (void *)inode;
	struct inode___v6_5 *v6_5 = (void *)inode;

	/* Since 6.13 the highest bit of the nanoseconds says that somebody has asked. */
	if (bpf_core_field_exists(struct inode, i_ctime_sec))
		return BPF_CORE_READ(inode, i_ctime_sec) * 1000000000ULL +
		       (BPF_CORE_READ(inode, i_ctime_nsec) & 0x7fffffff);
	if (bpf_core_field_exists(struct inode___v6_6, __i_ctime))
		return BPF_CORE_READ(v6_6, __i_ctime.tv_sec) * 1000000000ULL +
		       BPF_CORE_READ(v6_6, __i_ctime.tv_nsec);
	return BPF_CORE_READ(v6_5, i_ctime.tv_sec) * 1000000000ULL + BPF_CORE_READ(v6_5, i_ctime.tv_nsec);
}

#endif
