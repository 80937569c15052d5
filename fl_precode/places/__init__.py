"""Places of files that are on no path of the user: a cache folder, and object stores."""
