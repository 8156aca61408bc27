"""Photos: decoded whole or refused with a reason.

photos   strict decoding of image files
headers  format, size and depth from the first bytes
tiff     first directory of a TIFF or Exif block
color    colour profiles to sRGB
resize   antialiased bicubic
walk     folders of photos, in order
"""
