from tax_lightning.progress import show_progress


def test_a_log_gets_a_line_for_each_tenth(capsys):
    for done in range(1, 41):
        show_progress(done, 40)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{done} of 40 images" for done in range(4, 41, 4)]


def test_a_terminal_gets_one_line_that_counts_up(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for done in (1, 2):
        show_progress(done, 2)
    assert capsys.readouterr().err == "\r1 of 2 images\r2 of 2 images\n"
