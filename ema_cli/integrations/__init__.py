"""The averages inside the trainers: each module needs the library that it is named after."""
