"""The screens of `imgfs browse`, by Textual: imported where that is installed, by that command alone.

`app` has the screen, on top of `walk`: the `tree` filled by threads (`jobs`), so that the screen itself waits
for nothing. `dialogs` has what is asked on it, `highlight` colours of a text, `opened` the images.

All names come from images: they are quoted (`imgfs.quoting`) and shown as Rich's `Text` or by widgets without
markup, so that none is interpreted.
"""
