"""The tree shows the architecture: few modules outside of packages, no packages that import each other."""

from house import House

HOUSE = House()


def test_few_modules_lie_outside_of_a_package():
    assert len(HOUSE.list_own_room()) <= 8


def test_no_packages_import_each_other():
    assert not HOUSE.list_package_cycles()


def test_functions_are_verbs():
    assert not HOUSE.list_functions_without_verb()


def test_no_name_stands_for_two_things():
    assert not HOUSE.list_shared_names()
