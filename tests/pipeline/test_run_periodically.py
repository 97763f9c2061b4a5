import threading

from pipeline.progress import run_periodically


def test_it_looks_until_the_block_ends():
    looked = threading.Semaphore(0)
    with run_periodically(looked.release, 0.001):
        for _ in range(3):
            assert looked.acquire(timeout=60)
    while looked.acquire(blocking=False):
        pass
    assert not looked.acquire(timeout=0.05)


def test_the_end_waits_for_a_look_under_way():
    begun, ended = threading.Event(), threading.Event()

    def look():
        begun.set()
        threading.Event().wait(0.1)
        ended.set()

    with run_periodically(look, 0.001):
        assert begun.wait(60)
    assert ended.is_set()


def test_a_short_block_ends_before_the_first_call():
    looked = threading.Event()
    with run_periodically(looked.set, 60):
        pass
    assert not looked.is_set()
