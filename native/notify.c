/* One turn of the sentry's loop, for the platform `notify` (src/casemate/sentry/platform/notify.py): answer a
 * notification of seccomp_unotify(2), wait, receive the next one. Python makes the same three calls of the host
 * (NotifyPlatform._step) where this is not built, and a null call then costs half as much again.
 *
 * It decides one thing: a brk(2) for which Python has given leave beforehand (src/casemate/sentry/platform/permits.py),
 * by thread and by range, is passed on to the host here. A program that computes makes it every few milliseconds, and
 * finds nothing of Python in the processor's caches.
 *
 * What comes from an application is the numbers in `struct seccomp_notif`, which the host's kernel has written; they
 * are compared and handed on as integers, and nothing in here is an index, a size or an address because of them. */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>

#define EVENTS 32
#define LONGEST 1000000000

/* What a thread may have the host make, see Permits. */
struct permit {
    uint64_t tid; /* 0 for none */
    uint64_t low, high;
    uint64_t last, before; /* what it has had it make: the last one, and the one before */
};

/* Put a new reference into a tuple or list that was just made; takes both back and fails where there is none. */
static int put(PyObject *whole, int tuple, Py_ssize_t place, PyObject *part) {
    if (part == NULL)
        return -1;
    return tuple ? PyTuple_SetItem(whole, place, part) : PyList_SetItem(whole, place, part);
}

static PyObject *notification(const struct seccomp_notif *got) {
    PyObject *args = PyTuple_New(6);
    if (args == NULL)
        return NULL;
    for (int i = 0; i < 6; i++)
        if (put(args, 1, i, PyLong_FromUnsignedLongLong(got->data.args[i])) < 0) {
            Py_DECREF(args);
            return NULL;
        }
    PyObject *whole = PyTuple_New(4);
    if (whole == NULL) {
        Py_DECREF(args);
        return NULL;
    }
    if (PyTuple_SetItem(whole, 3, args) < 0 || put(whole, 1, 0, PyLong_FromUnsignedLongLong(got->id)) < 0 ||
        put(whole, 1, 1, PyLong_FromUnsignedLong(got->pid)) < 0 ||
        put(whole, 1, 2, PyLong_FromUnsignedLong((unsigned int)got->data.nr)) < 0) {
        Py_DECREF(whole);
        return NULL;
    }
    return whole;
}

static PyObject *ready(const struct epoll_event *events, int count) {
    PyObject *whole = PyList_New(count);
    if (whole == NULL)
        return NULL;
    for (int i = 0; i < count; i++) {
        PyObject *pair = PyTuple_New(2);
        if (pair == NULL || put(pair, 1, 0, PyLong_FromLong(events[i].data.fd)) < 0 ||
            put(pair, 1, 1, PyLong_FromUnsignedLong(events[i].events)) < 0) {
            Py_XDECREF(pair);
            Py_DECREF(whole);
            return NULL;
        }
        if (put(whole, 0, i, pair) < 0) {
            Py_DECREF(whole);
            return NULL;
        }
    }
    return whole;
}

static struct permit *permit_of(struct permit *permits, Py_ssize_t count, const struct seccomp_notif *got) {
    if (got->data.nr != SYS_brk)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        if (permits[i].tid && permits[i].tid == got->pid)
            return got->data.args[0] >= permits[i].low && got->data.args[0] <= permits[i].high ? &permits[i] : NULL;
    return NULL;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* Wait and receive, until there is something that Python has to know. */
static PyObject *next(int epoll, int listener, int timeout, struct permit *permits, Py_ssize_t count) {
    int64_t end = timeout < 0 ? 0 : now() + timeout;
    for (;;) {
        struct epoll_event events[EVENTS];
        int found;
        Py_BEGIN_ALLOW_THREADS
        found = epoll_wait(epoll, events, EVENTS, timeout);
        Py_END_ALLOW_THREADS
        if (found < 0) {
            if (errno != EINTR)
                return PyErr_SetFromErrno(PyExc_OSError);
            if (PyErr_CheckSignals() < 0)
                return NULL;
            found = 0;
        }
        if (found != 1 || events[0].data.fd != listener)
            return ready(events, found);
        struct seccomp_notif got;
        memset(&got, 0, sizeof got);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &got) < 0) {
            if (errno != ENOENT)
                return PyErr_SetFromErrno(PyExc_OSError);
            return PyList_New(0); /* its thread was interrupted or killed in the meantime */
        }
        struct permit *permit = permit_of(permits, count, &got);
        if (permit == NULL)
            return notification(&got);
        struct seccomp_notif_resp answer;
        memset(&answer, 0, sizeof answer);
        answer.id = got.id;
        answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) == 0) {
            permit->before = permit->last;
            permit->last = got.data.args[0];
        } else if (errno != ENOENT) { /* else it makes its call again, or was killed: nothing has happened */
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (timeout >= 0) {
            int64_t left = end - now();
            if (left <= 0)
                return PyList_New(0);
            timeout = (int)left;
        }
    }
}

/* step(epoll, listener, timeout, notice, value, permits): see NotifyPlatform._step. */
static PyObject *step(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 6) {
        PyErr_SetString(PyExc_TypeError, "step takes 6 arguments");
        return NULL;
    }
    long epoll = PyLong_AsLong(args[0]), listener = PyLong_AsLong(args[1]), timeout = PyLong_AsLong(args[2]);
    unsigned long long notice = PyLong_AsUnsignedLongLong(args[3]);
    unsigned long long value = PyLong_AsUnsignedLongLongMask(args[4]);
    if (PyErr_Occurred())
        return NULL;
    Py_buffer permits;
    if (PyObject_GetBuffer(args[5], &permits, PyBUF_WRITABLE) < 0)
        return NULL;
    PyObject *result = NULL;
    if (notice) {
        struct seccomp_notif_resp answer;
        memset(&answer, 0, sizeof answer);
        answer.id = notice;
        answer.val = (long long)value;
        if (ioctl((int)listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) < 0) {
            if (errno == ENOENT) {
                result = Py_None;
                Py_INCREF(result);
            } else {
                PyErr_SetFromErrno(PyExc_OSError);
            }
            goto done;
        }
    }
    result = next((int)epoll, (int)listener, timeout > LONGEST ? LONGEST : (int)timeout, permits.buf,
                  permits.len / (Py_ssize_t)sizeof(struct permit));
done:
    PyBuffer_Release(&permits);
    return result;
}

static PyMethodDef methods[] = {
    {"step", (PyCFunction)(void (*)(void))step, METH_FASTCALL, "Answer, wait, receive."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_notify", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__notify(void) {
    return PyModule_Create(&module);
}
