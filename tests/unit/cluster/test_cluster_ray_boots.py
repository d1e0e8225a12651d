from cluster.ray_boots import ATTEMPTS, Choice, RayBoot, choose

EARLIER = RayBoot("earlier", "Prism 1")


def test_without_an_earlier_boot_a_new_one_begins_and_nothing_needs_to_be_said():
    assert choose(None, "Prism 1", "new") == Choice(RayBoot("new", "Prism 1"), continued=False)


def test_an_earlier_boot_is_continued_and_the_attempt_counted():
    assert choose(EARLIER, "Prism 1", "new") == Choice(RayBoot("earlier", "Prism 1", 1), continued=True)


def test_attempts_that_were_cut_short_come_to_an_end():
    found, continued = EARLIER, 0
    while (choice := choose(found, "Prism 1", "new")).continued:
        found, continued = choice.boot, continued + 1
    assert continued == ATTEMPTS
    assert choice.boot == RayBoot("new", "Prism 1") and "came to nothing" in choice.why


def test_what_another_version_wrote_is_not_read():
    choice = choose(EARLIER, "Prism 2", "new")
    assert choice.boot == RayBoot("new", "Prism 2") and not choice.continued
    assert choice.why == "it ran Prism 1, this is Prism 2"
