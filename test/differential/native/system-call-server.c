/*
 * Makes system calls for another program: the real half of the differential tests. Requests come on standard input,
 * replies go to standard output; the layouts are those of struct request and struct reply, followed by their bytes.
 *
 * A request names a thread of this process. Most are served by the thread that reads them; those that may block, and
 * all as soon as there is more than one thread, by a thread of that number, which is started when it is first named.
 *
 * FORK goes on in a child, which reads the same input until it is told to EXIT; the parent then says so with the tag
 * CHILD_ENDED and goes on itself. Whatever a child leaves behind, its end takes away.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SYSCALL, LOAD, STORE, SIGNAL, FORK, EXIT };
enum { FLAG_BLOCKING = 1 };
enum { THREADS_MAX = 16, DESCRIPTORS_MAX = 65536 };
#define CHILD_ENDED 0xffffffffu

struct request {
	uint32_t tag, thread, call, flags;
	/* SYSCALL: its number and arguments. LOAD, STORE: args[0] is the address. SIGNAL: args[0] is the signal. */
	uint64_t number, args[6];
	/* 1 + index of the argument that is to be the address of the bytes; 0: none. */
	uint32_t pointer;
	/* Bytes that follow this header, and bytes that the reply shall have. */
	uint32_t in, out, padding;
};

struct reply {
	uint32_t tag, bytes;
	int64_t ret;
	/* errno, or 0; and the signal that a touch of memory raised, or 0. */
	int32_t error;
	uint32_t signal;
};

struct job {
	struct request request;
	unsigned char *bytes;
	struct job *next;
};

struct thread {
	pthread_t id;
	pid_t tid;
	int started;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct job *first, **last;
};

static struct thread threads[THREADS_MAX];
static pthread_mutex_t output = PTHREAD_MUTEX_INITIALIZER;
static __thread sigjmp_buf touch;
static __thread volatile sig_atomic_t touching;

static void on_fault(int signal)
{
	if (!touching)
		_exit(128 + signal);
	siglongjmp(touch, signal);
}

static void on_kick(int signal)
{
	(void)signal;
}

static void read_fully(void *buffer, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = read(STDIN_FILENO, (char *)buffer + done, length - done);
		if (n == 0 || (n < 0 && errno != EINTR))
			_exit(0);
		if (n > 0)
			done += n;
	}
}

static void write_fully(const void *buffer, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = write(STDOUT_FILENO, (const char *)buffer + done, length - done);
		if (n < 0 && errno != EINTR)
			_exit(1);
		if (n > 0)
			done += n;
	}
}

static void answer(struct reply reply, const void *bytes)
{
	static unsigned char small[sizeof reply + 65536];

	pthread_mutex_lock(&output);
	memcpy(small, &reply, sizeof reply);
	if (reply.bytes <= sizeof small - sizeof reply) {
		if (reply.bytes)
			memcpy(small + sizeof reply, bytes, reply.bytes);
		write_fully(small, sizeof reply + reply.bytes);
	} else {
		write_fully(&reply, sizeof reply);
		write_fully(bytes, reply.bytes);
	}
	pthread_mutex_unlock(&output);
}

/* Copies between this process's memory and `bytes`; the signal that it raised, or 0. */
static int copy(struct job *job)
{
	void *memory = (void *)(uintptr_t)job->request.args[0];
	int signal = sigsetjmp(touch, 1);

	if (signal == 0) {
		touching = 1;
		if (job->request.call == LOAD)
			memcpy(job->bytes, memory, job->request.out);
		else
			memcpy(memory, job->bytes, job->request.in);
	}
	touching = 0;
	return signal;
}

static void discard(struct job *job)
{
	free(job->bytes);
	free(job);
}

static void serve(struct job *job)
{
	struct request *request = &job->request;
	struct reply reply = { .tag = request->tag, .bytes = request->out };
	uint64_t *a = request->args;

	switch (request->call) {
	case SYSCALL:
		if (request->pointer)
			a[request->pointer - 1] = (uintptr_t)job->bytes;
		errno = 0;
		reply.ret = syscall(request->number, a[0], a[1], a[2], a[3], a[4], a[5]);
		reply.error = reply.ret == -1 ? errno : 0;
		break;
	case LOAD:
	case STORE:
		reply.signal = copy(job);
		if (reply.signal)
			reply.bytes = 0;
		break;
	}
	answer(reply, job->bytes);
	discard(job);
}

static void *thread_main(void *argument)
{
	struct thread *thread = argument;

	pthread_mutex_lock(&thread->lock);
	thread->tid = gettid();
	pthread_cond_broadcast(&thread->changed);
	for (;;) {
		while (!thread->first)
			pthread_cond_wait(&thread->changed, &thread->lock);
		struct job *job = thread->first;
		thread->first = job->next;
		if (!thread->first)
			thread->last = &thread->first;
		pthread_mutex_unlock(&thread->lock);
		serve(job);
		pthread_mutex_lock(&thread->lock);
	}
	return NULL;
}

/* The thread of that number, running. */
static struct thread *thread_of(uint32_t number)
{
	struct thread *thread = &threads[number % THREADS_MAX];

	if (thread->started)
		return thread;
	thread->started = 1;
	thread->first = NULL;
	thread->last = &thread->first;
	pthread_mutex_init(&thread->lock, NULL);
	pthread_cond_init(&thread->changed, NULL);
	if (pthread_create(&thread->id, NULL, thread_main, thread))
		abort();
	pthread_mutex_lock(&thread->lock);
	while (!thread->tid)
		pthread_cond_wait(&thread->changed, &thread->lock);
	pthread_mutex_unlock(&thread->lock);
	return thread;
}

static void give(struct thread *thread, struct job *job)
{
	pthread_mutex_lock(&thread->lock);
	job->next = NULL;
	*thread->last = job;
	thread->last = &job->next;
	pthread_cond_signal(&thread->changed);
	pthread_mutex_unlock(&thread->lock);
}

static void fork_and_go_on(struct job *job)
{
	struct reply reply = { .tag = job->request.tag };
	pid_t pid;
	int status;

	/* A thread whose answer has arrived may still be about to let go of the lock: the child would wait for it for ever. */
	pthread_mutex_lock(&output);
	pid = fork();
	pthread_mutex_unlock(&output);
	if (pid < 0)
		abort();
	if (pid == 0) {
		/* Only this thread came along. */
		memset(threads, 0, sizeof threads);
		answer(reply, NULL);
		return;
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	answer((struct reply){ .tag = CHILD_ENDED, .ret = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status) }, NULL);
}

static void handle(int signal, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };

	sigaction(signal, &action, NULL);
}

int main(void)
{
	struct rlimit descriptors = { DESCRIPTORS_MAX, DESCRIPTORS_MAX };

	setrlimit(RLIMIT_NOFILE, &descriptors);
	handle(SIGSEGV, on_fault, SA_NODEFER);
	handle(SIGBUS, on_fault, SA_NODEFER);
	handle(SIGUSR1, on_kick, 0);
	handle(SIGUSR2, on_kick, 0);
	for (;;) {
		struct job *job = calloc(1, sizeof *job);
		struct request *request = &job->request;

		read_fully(request, sizeof *request);
		size_t room = request->in > request->out ? request->in : request->out;
		job->bytes = calloc(1, room ? room : 1);
		if (!job->bytes)
			abort();
		read_fully(job->bytes, request->in);
		switch (request->call) {
		case EXIT:
			_exit(0);
		case FORK:
			fork_and_go_on(job);
			discard(job);
			break;
		case SIGNAL: {
			struct thread *thread = thread_of(request->thread);
			int ret = syscall(SYS_tgkill, getpid(), thread->tid, (int)request->args[0]);

			answer((struct reply){ .tag = request->tag, .ret = ret, .error = ret ? errno : 0 }, NULL);
			discard(job);
			break;
		}
		default:
			if (request->flags & FLAG_BLOCKING)
				give(thread_of(request->thread), job);
			else
				serve(job);
		}
	}
}
