"""PRECODE's experiment (Scheliga et al., WACV 2022), re-run with adaptive attackers."""
