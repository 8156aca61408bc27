"""Photos: decoded completely, or refused with a reason.

photos   strict decoding of image files
headers  format, size and structure, read before decoding
tiff     first directory of a TIFF or Exif block
color    conversion of colour profiles to sRGB
resize   antialiased bicubic
walk     recursive listing of photo files
"""
